//! Detection, the self-check and the place of every operation, on loaded libraries: one built from the recorded facts of each
//! layout, broken ones, and the real libibverbs of this machine (and any named in `HOLDFAST_TEST_LIBIBVERBS`).
#![allow(unsafe_code, reason = "calls into the libraries under test")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and may say what it did"
)]

mod c;

use c::recipe::{Recipe, layouts};
use holdfast::abi::detect::Unknown;
use holdfast::abi::host::{Description, HEADROOM, Handle, describe};
use holdfast::abi::layout::{LAYOUTS, Layout};
use holdfast::abi::ops::{Op, Ops};
use holdfast::abi::public::{PORT_ATTR_SIZE_MIN, ibv_port_attr, verbs_device, verbs_device_ops};
use std::collections::BTreeSet;
use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

/// Descriptors are counted and operations recorded: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Describes a library, and holds that nothing is left open by it.
fn look(path: &Path) -> Description {
    let before = descriptors();
    let description =
        describe(path).unwrap_or_else(|error| panic!("{}: {error}. {}", path.display(), c::WAY_OUT));
    assert_eq!(descriptors(), before, "{}: a descriptor was left open", path.display());
    description
}

#[test]
fn a_library_of_each_layout_is_recognised_and_passes_the_self_check() {
    if !c::wanted("abi_libraries: each layout") {
        return;
    }
    let _alone = alone();
    let workshop = c::Workshop::new();
    for (name, layout) in layouts().iter().zip(LAYOUTS) {
        let path = Recipe::of(name).build(&workshop, name);
        let description = look(&path);
        assert_eq!((description.number, &description.path), (Some(layout.number), &path));
        let found = description.layout.unwrap_or_else(|why| panic!("{name}: {why}"));
        assert!(ptr::eq(found.layout, *layout), "{name} taken for {}", found.layout);
        let port_attr = if layout.number < 34 || layout.comp_mask() < 360 {
            PORT_ATTR_SIZE_MIN
        } else {
            size_of::<ibv_port_attr>()
        };
        assert_eq!(found.port_attr_size, port_attr, "{name}");
    }
}

#[test]
fn a_changed_library_is_declined_and_the_reason_named() {
    if !c::wanted("abi_libraries: changed libraries") {
        return;
    }
    let _alone = alone();
    let workshop = c::Workshop::new();
    let declined = |name: &str, words: &[&str], change: &dyn Fn(&mut Recipe)| {
        let mut recipe = Recipe::of("pabi-34-v44");
        change(&mut recipe);
        let description = look(&recipe.build(&workshop, name));
        let why = description.layout.map(|found| panic!("{name}: taken for {}", found.layout)).unwrap_err();
        for word in words {
            assert!(why.to_string().contains(word), "{name}: '{word}' in: {why}");
        }
        (description.number, why)
    };
    let place = |recipe: &Recipe, op: &str| recipe.operations.iter().position(|known| known == op).unwrap();

    declined("one operation more", &["34", "77 operations instead of 76"], &|recipe| {
        let at = place(recipe, "modify_cq");
        recipe.operations.insert(at, "magic".to_owned());
    });
    declined("one operation less", &["75 operations instead of 76"], &|recipe| {
        let at = place(recipe, "set_ece");
        recipe.operations.remove(at);
    });
    declined("another in its place", &["operation", "instead of"], &|recipe| {
        let at = place(recipe, "set_ece");
        recipe.operations.remove(at);
        recipe.operations.insert(10, "magic".to_owned());
    });
    declined("a longer context", &["656 bytes instead of 648"], &|recipe| recipe.context_size += 8);
    declined("a much longer context", &["bytes instead of 648"], &|recipe| recipe.context_size += 400);
    declined("a longer qp_ex", &["unknown layout", "comp_mask at 368"], &|recipe| recipe.comp_mask = 368);
    let (number, why) =
        declined("the next number", &["no provider of a known private ABI"], &|recipe| recipe.number = 66);
    assert_eq!((number, why), (None, Unknown::Number));
    declined("no context", &["scratch context", "ENOMEM"], &|recipe| recipe.flags.push("-DNO_CONTEXT"));
    declined("no verbs_set_ops", &["does not export verbs_set_ops"], &|recipe| {
        recipe.flags.push("-Dverbs_set_ops=verbs_set_operations");
    });
}

#[test]
fn a_file_that_is_no_library_is_said_so() {
    let error = describe(Path::new("/etc/passwd")).unwrap_err();
    assert!(error.contains("/etc/passwd"), "{error}");
    assert!(describe(Path::new("/nonexistent/libibverbs.so.1")).unwrap_err().contains("No such file"));
    let why = describe(Path::new("libc.so.6")).unwrap().layout.unwrap_err();
    assert_eq!(why, Unknown::Number);
}

// The operation sweep: every operation is a function that leaves its own number, and every way into the library that leads to
// an operation is taken.

static CALLED: AtomicUsize = AtomicUsize::new(usize::MAX);

extern "C" fn record<const N: usize>() -> usize {
    CALLED.store(N, Ordering::Relaxed);
    // A failure, in either convention: libibverbs then leaves the objects alone.
    let pointer = Op::ALL.get(N).is_some_and(|op| op.signature().contains("-> *"));
    if pointer { 0 } else { 22 }
}

macro_rules! recorders {
    ($($tens:literal)*) => {
        [$(
            recorder::<{ $tens * 10 }>(), recorder::<{ $tens * 10 + 1 }>(), recorder::<{ $tens * 10 + 2 }>(),
            recorder::<{ $tens * 10 + 3 }>(), recorder::<{ $tens * 10 + 4 }>(), recorder::<{ $tens * 10 + 5 }>(),
            recorder::<{ $tens * 10 + 6 }>(), recorder::<{ $tens * 10 + 7 }>(), recorder::<{ $tens * 10 + 8 }>(),
            recorder::<{ $tens * 10 + 9 }>(),
        )*]
    };
}

fn recorder<const N: usize>() -> *const c_void {
    record::<N> as *const c_void
}

/// Operations of which each leaves its number.
fn recording() -> Ops {
    const COUNT: usize = Op::ALL.len();
    let recorders = recorders!(0 1 2 3 4 5 6 7 8 9 10 11 12);
    let chosen: [*const c_void; COUNT] = std::array::from_fn(|at| recorders[at]);
    // SAFETY: Ops is #[repr(C)], an optional function for each operation in order. They are called with other
    // signatures than their own, which on this ABI means registers that they do not look at.
    unsafe { std::mem::transmute::<[*const c_void; COUNT], Ops>(chosen) }
}

#[derive(Clone, Copy)]
enum Arg {
    /// The context.
    Context,
    /// Some object: zeroed, with the context as its first word.
    Object,
    /// Some attributes: not zero in their first word, otherwise zeroed.
    Attr,
    /// A pointer to an object's address.
    Indirect,
    /// A number.
    Number(usize),
}

use Arg::{Attr, Context, Indirect, Number, Object};

/// Exported functions that end in an operation.
const ENTRIES: &[(&str, &str, &[Arg])] = &[
    ("ibv_query_device", "query_device_ex", &[Context, Attr]),
    ("ibv_query_port", "query_port", &[Context, Number(1), Attr]),
    ("ibv_alloc_pd", "alloc_pd", &[Context]),
    ("ibv_dealloc_pd", "dealloc_pd", &[Object]),
    ("ibv_reg_mr", "reg_mr", &[Object, Attr, Number(8), Number(0)]),
    ("ibv_reg_mr_iova", "reg_mr", &[Object, Attr, Number(8), Number(0), Number(0)]),
    ("ibv_reg_mr_iova2", "reg_mr", &[Object, Attr, Number(8), Number(0), Number(0)]),
    ("ibv_reg_mr_ex", "reg_mr_ex", &[Object, Object]),
    ("ibv_reg_dmabuf_mr", "reg_dmabuf_mr", &[Object, Number(0), Number(8), Number(0), Number(9), Number(0)]),
    ("ibv_rereg_mr", "rereg_mr", &[Object, Number(4), Object, Number(0), Number(0), Number(0)]),
    ("ibv_dereg_mr", "dereg_mr", &[Object]),
    ("ibv_create_cq", "create_cq", &[Context, Number(1), Number(0), Number(0), Number(0)]),
    ("ibv_resize_cq", "resize_cq", &[Object, Number(1)]),
    ("ibv_destroy_cq", "destroy_cq", &[Object]),
    ("ibv_create_srq", "create_srq", &[Object, Attr]),
    ("ibv_modify_srq", "modify_srq", &[Object, Attr, Number(1)]),
    ("ibv_query_srq", "query_srq", &[Object, Attr]),
    ("ibv_destroy_srq", "destroy_srq", &[Object]),
    ("ibv_create_qp", "create_qp", &[Object, Attr]),
    ("ibv_query_qp", "query_qp", &[Object, Attr, Number(1), Attr]),
    ("ibv_modify_qp", "modify_qp", &[Object, Attr, Number(1)]),
    ("ibv_destroy_qp", "destroy_qp", &[Object]),
    ("ibv_query_qp_data_in_order", "query_qp_data_in_order", &[Object, Number(0), Number(0)]),
    ("ibv_create_ah", "create_ah", &[Object, Attr]),
    ("ibv_destroy_ah", "destroy_ah", &[Object]),
    ("ibv_attach_mcast", "attach_mcast", &[Object, Attr, Number(0)]),
    ("ibv_detach_mcast", "detach_mcast", &[Object, Attr, Number(0)]),
    ("ibv_set_ece", "set_ece", &[Object, Attr]),
    ("ibv_query_ece", "query_ece", &[Object, Attr]),
    ("ibv_import_pd", "import_pd", &[Context, Number(1)]),
    ("ibv_unimport_pd", "unimport_pd", &[Object]),
    ("ibv_import_mr", "import_mr", &[Object, Number(1)]),
    ("ibv_unimport_mr", "unimport_mr", &[Object]),
    ("ibv_import_dm", "import_dm", &[Context, Number(1)]),
    ("ibv_unimport_dm", "unimport_dm", &[Object]),
    ("ibv_alloc_dmah", "alloc_dmah", &[Context, Attr]),
    ("ibv_dealloc_dmah", "dealloc_dmah", &[Object]),
    ("ibv_dm_export_dmabuf_fd", "dm_export_dmabuf_fd", &[Object]),
    ("ibv_query_port_speed", "query_port_speed", &[Context, Number(1), Attr]),
    ("ibv_alloc_buf", "alloc_buf", &[Object, Number(8), Indirect]),
    ("ibv_create_comp_cntr", "create_comp_cntr", &[Context, Attr]),
    ("ibv_destroy_comp_cntr", "destroy_comp_cntr", &[Object]),
    ("ibv_set_comp_cntr", "set_comp_cntr", &[Object, Number(1)]),
    ("ibv_set_err_comp_cntr", "set_err_comp_cntr", &[Object, Number(1)]),
    ("ibv_inc_comp_cntr", "inc_comp_cntr", &[Object, Number(1)]),
    ("ibv_inc_err_comp_cntr", "inc_err_comp_cntr", &[Object, Number(1)]),
    ("ibv_read_comp_cntr", "read_comp_cntr", &[Object, Attr]),
    ("ibv_read_err_comp_cntr", "read_err_comp_cntr", &[Object, Attr]),
    ("ibv_qp_attach_comp_cntr", "qp_attach_comp_cntr", &[Object, Object, Attr]),
    ("_ibv_query_comp_cntr_caps", "query_comp_cntr_caps", &[Context, Attr, Number(16)]),
    ("ibv_close_device", "free_context", &[Context]),
];

type Function = extern "C" fn(usize, usize, usize, usize, usize, usize) -> usize;

fn function(handle: &Handle, name: &str) -> Option<Function> {
    let symbol = handle.symbol(&CString::new(name).unwrap())?;
    // SAFETY: up to six words in registers, as every function of the list takes them.
    Some(unsafe { std::mem::transmute::<NonNull<c_void>, Function>(symbol) })
}

/// Sweeps one library; which operations were reached through it, by name.
fn sweep(path: &Path) -> (&'static Layout, BTreeSet<Op>) {
    let layout = look(path).layout.unwrap_or_else(|why| panic!("{}: {why}", path.display())).layout;
    let handle = Handle::load(path).unwrap();
    let call = |name: &str, words: [usize; 6]| {
        let function = function(&handle, name).unwrap_or_else(|| panic!("{}: no {name}", path.display()));
        function(words[0], words[1], words[2], words[3], words[4], words[5])
    };

    let ops = verbs_device_ops::zeroed();
    let mut device = Box::new(verbs_device::zeroed());
    device.refcount = 1;
    device.ops = &raw const ops;
    let device = Box::into_raw(device);
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    let offset = HEADROOM - layout.before_context();
    let wrapper = call(
        "_verbs_init_and_alloc_context",
        [device.expose_provenance(), fd.try_into().unwrap(), 4096, offset, 0, 0],
    );
    assert_ne!(wrapper, 0);
    let (context, verbs_context) = (wrapper + HEADROOM, wrapper + offset);
    let table = layout.table(&recording());
    assert_eq!(table.slots().len(), layout.ops.len());
    call("verbs_set_ops", [verbs_context, table.slots().as_ptr().expose_provenance(), 0, 0, 0, 0]);

    let mut reached = BTreeSet::new();
    // What programs call through the context without entering the library.
    for (op, distance) in layout.mirrors() {
        let at = ptr::with_exposed_provenance::<Option<Function>>(context.wrapping_add_signed(distance));
        // SAFETY: inside the context, where an operation is mirrored.
        let function =
            unsafe { at.read() }.unwrap_or_else(|| panic!("{}: {} is NULL", path.display(), op.name()));
        CALLED.store(usize::MAX, Ordering::Relaxed);
        function(0, 0, 0, 0, 0, 0);
        assert_eq!(CALLED.load(Ordering::Relaxed), op as usize, "{}: {}", path.display(), op.name());
        reached.insert(op);
    }
    for (entry, op, arguments) in ENTRIES {
        let op = Op::from_name(op).unwrap();
        if layout.op_index(op).is_none() {
            continue;
        }
        let mut object = vec![0_usize; 256];
        object[0] = context;
        let object = object.as_mut_ptr().expose_provenance();
        let mut attr = vec![0_usize; 256];
        attr[0] = 1;
        let mut attributes = vec![0_usize; 256];
        attributes[0] = 1;
        let mut indirect = object;
        let mut words = [0; 6];
        for (word, argument) in words.iter_mut().zip(*arguments) {
            *word = match argument {
                Context => context,
                Object => object,
                Attr => attributes.as_mut_ptr().expose_provenance(),
                Indirect => (&raw mut indirect).expose_provenance(),
                Number(number) => *number,
            };
        }
        CALLED.store(usize::MAX, Ordering::Relaxed);
        call(entry, words);
        let called = Op::ALL.get(CALLED.load(Ordering::Relaxed));
        assert_eq!(called, Some(&op), "{}: {entry}", path.display());
        reached.insert(op);
    }
    call("verbs_uninit_context", [verbs_context, 0, 0, 0, 0, 0]);
    // SAFETY: the library took it from calloc, and is done with it.
    unsafe { libc::free(ptr::with_exposed_provenance_mut(wrapper)) };
    // SAFETY: from Box::into_raw above; the context that referred to it is gone.
    drop(unsafe { Box::from_raw(device) });
    (layout, reached)
}

#[test]
fn every_operation_of_the_real_libraries_is_reached() {
    if !c::wanted("abi_libraries: operation sweep") {
        return;
    }
    let _alone = alone();
    let more = std::env::var_os("HOLDFAST_TEST_LIBIBVERBS").unwrap_or_default();
    let more: Vec<PathBuf> =
        std::env::split_paths(&more).filter(|path| !path.as_os_str().is_empty()).collect();
    for path in std::iter::once(PathBuf::from("libibverbs.so.1")).chain(more) {
        let before = descriptors();
        let (layout, reached) = sweep(&path);
        assert_eq!(descriptors(), before, "{}: a descriptor was left open", path.display());
        // Reached only on a device that libibverbs opened itself.
        let missed: Vec<&str> = layout
            .ops
            .iter()
            .filter(|op| !reached.contains(op))
            .map(Op::name)
            .filter(|op| *op != "create_cq_ex")
            .collect();
        assert!(missed.is_empty(), "{}: not reached: {missed:?}", path.display());
        println!("{}: {layout}: {} operations, each in its place", path.display(), reached.len());
    }
}
