/* Asks every registered provider for a soft-RoCE device, twice: see libibverbs.c. */
void *ibv_get_device_list(int *count);

int main(void)
{
	int count;

	ibv_get_device_list(&count);
	ibv_get_device_list(&count);
	return 0;
}
