# The tools of rdmacm-utils, and qperf.

cm_tool() { # NAME VARIANTS EXPECT SERVER-WORDS CLIENT-WORDS
    register "$1" "$2" "tool_pair \$variant preload cm '$3' -- $4 -- $5"
}

cm_tool rping-local "$BOTH" 'client DISCONNECT|^ping data' 'rping -s -a 10.0.0.1 -p $port -C 50' 'rping -c -v -a 10.0.0.1 -p $port -C 50'
cm_tool rping-across "$ALL4" '^ping data' 'rping -s -a 10.0.0.1 -p $port -C 50' 'rping -c -v -I 10.0.0.2 -a 10.0.0.1 -p $port -C 50'
cm_tool ucmatose "$ALL4" 'data transfers complete' 'ucmatose -b 10.0.0.1 -p $port' 'ucmatose -b 10.0.0.2 -s 10.0.0.1 -p $port'
cm_tool ucmatose-many "$BOTH" 'data transfers complete' 'ucmatose -b 10.0.0.1 -p $port -c 10 -C 20' 'ucmatose -b 10.0.0.2 -s 10.0.0.1 -p $port -c 10 -C 20'
cm_tool udaddy "$BOTH" 'data transfers complete' 'udaddy -b 10.0.0.1' 'udaddy -b 10.0.0.2 -s 10.0.0.1'
cm_tool rdma-client-server "$BOTH" 'rdma_client: end 0' 'rdma_server -s 10.0.0.1 -p $port' 'rdma_client -s 10.0.0.1 -p $port'
