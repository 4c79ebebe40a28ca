//! The rows: what each one's name stands for.

/// A row of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// The row that has the least that this can cost, done by hand.
    pub(crate) floor: Option<&'static str>,
    /// Whether it is measured with the death machinery compiled out, too.
    pub(crate) death: bool,
    /// Whether it has a line in the README.
    pub(crate) readme: bool,
}

impl Row {
    const fn new(name: &'static str, what: &'static str) -> Row {
        Row { name, what, floor: None, death: false, readme: false }
    }

    const fn floor(self, floor: &'static str) -> Row {
        Row { floor: Some(floor), ..self }
    }

    /// One of those by which a provider is judged.
    const fn main(self) -> Row {
        Row { death: true, readme: true, ..self }
    }

    const fn readme(self) -> Row {
        Row { readme: true, ..self }
    }
}

/// A heading, and the rows below it.
pub(crate) type Group = (&'static str, &'static [Row]);

pub(crate) const GROUPS: &[Group] = &[
    (
        "ibv_post_send, one a call",
        &[
            Row::new("post-write8-inline", "RDMA write, 8 bytes inline").floor("floor-post").main(),
            Row::new("post-write64", "RDMA write, 64 bytes").main(),
            Row::new("post-send64-inline", "send, 64 bytes inline").main(),
            Row::new("post-write-2sge", "RDMA write, 2 SGEs of 32 bytes").readme(),
            Row::new("post-read64", "RDMA read, 64 bytes").readme(),
            Row::new("post-fetch-add", "fetch and add").readme(),
            Row::new("post-write8-inline-signal16", "RDMA write, 8 bytes inline, 1 in 16 signaled")
                .floor("floor-post"),
            Row::new("qp5-post-write8-inline", "8 bytes inline, on a context's fifth QP")
                .floor("floor-post")
                .main(),
            Row::new("qp5-post-write64", "RDMA write, 64 bytes, on the fifth QP"),
            Row::new("qp5-post-send64-inline", "send, 64 bytes inline, on the fifth QP"),
            Row::new("qps16-post-write8-inline", "8 bytes inline, 16 QPs in turn").readme(),
            Row::new("qps256-post-write8-inline", "8 bytes inline, 256 QPs in turn").readme(),
        ],
    ),
    (
        "ibv_post_send, lists of 16, each work request",
        &[
            Row::new("list-write8-inline", "RDMA write, 8 bytes inline").floor("floor-list").main(),
            Row::new("list-write64", "RDMA write, 64 bytes").main(),
            Row::new("list-send64-inline", "send, 64 bytes inline").readme(),
            Row::new("list-write-2sge", "RDMA write, 2 SGEs of 32 bytes"),
            Row::new("list-read64", "RDMA read, 64 bytes"),
            Row::new("list-fetch-add", "fetch and add").readme(),
            Row::new("list-write8-inline-signal16", "8 bytes inline, 1 in 16 signaled").floor("floor-list"),
        ],
    ),
    (
        "ibv_wr_*, one from start to complete",
        &[
            Row::new("wr-write8-inline", "RDMA write, 8 bytes inline").floor("floor-post").main(),
            Row::new("wr-write64", "RDMA write, 64 bytes").main(),
            Row::new("wr-send64-inline", "send, 64 bytes inline"),
            Row::new("wr-write-2sge", "RDMA write, 2 SGEs of 32 bytes"),
            Row::new("wr-read64", "RDMA read, 64 bytes"),
            Row::new("wr-fetch-add", "fetch and add"),
            Row::new("qp5-wr-write8-inline", "8 bytes inline, on the fifth QP").floor("floor-post"),
        ],
    ),
    (
        "ibv_wr_*, 16 from start to complete, each work request",
        &[
            Row::new("wr-write8-inline-16", "RDMA write, 8 bytes inline").floor("floor-list").main(),
            Row::new("wr-write64-16", "RDMA write, 64 bytes").main(),
            Row::new("wr-send64-inline-16", "send, 64 bytes inline"),
            Row::new("wr-read64-16", "RDMA read, 64 bytes"),
        ],
    ),
    (
        "receives, each",
        &[
            Row::new("recv", "ibv_post_recv, one a call").floor("floor-recv").main(),
            Row::new("recv-16", "ibv_post_recv, lists of 16").floor("floor-recv-16").main(),
            Row::new("srq", "ibv_post_srq_recv, one a call").main(),
            Row::new("srq-16", "ibv_post_srq_recv, lists of 16").main(),
        ],
    ),
    (
        "completions, each",
        &[
            Row::new("poll-send", "ibv_poll_cq, one a call, sends").floor("floor-poll").main(),
            Row::new("poll-send-16", "ibv_poll_cq, 16 a call, sends").floor("floor-poll-16").main(),
            Row::new("poll-recv", "ibv_poll_cq, one a call, receives").main(),
            Row::new("poll-recv-16", "ibv_poll_cq, 16 a call, receives").main(),
            Row::new("poll-srq", "ibv_poll_cq, one a call, receives of an SRQ"),
            Row::new("poll-srq-16", "ibv_poll_cq, 16 a call, receives of an SRQ").readme(),
            Row::new("qps16-poll-send-16", "ibv_poll_cq, 16 a call, sends of 16 QPs in turn").readme(),
            Row::new("qps256-poll-send-16", "ibv_poll_cq, 16 a call, sends of 256 QPs in turn").readme(),
            Row::new("poll-empty", "ibv_poll_cq, nothing there").main(),
            Row::new("ex-poll-send", "ibv_start_poll to end, one, sends").main(),
            Row::new("ex-poll-send-16", "ibv_start_poll to end, 16, sends").main(),
            Row::new("ex-poll-recv", "ibv_start_poll to end, one, receives"),
            Row::new("ex-poll-recv-16", "ibv_start_poll to end, 16, receives").readme(),
            Row::new("ex-poll-empty", "ibv_start_poll, nothing there"),
        ],
    ),
    (
        "two threads at once, on two processors, each post",
        &[
            Row::new("threads2-own-qps", "8 bytes inline, each its own QP").readme(),
            Row::new("threads2-qps-5-17", "each its own, which with stock share a doorbell register")
                .readme(),
            Row::new("threads2-one-qp", "both the same QP").readme(),
        ],
    ),
    (
        "making and unmaking, with all that the bed does for a kernel",
        &[
            Row::new("create-qp", "ibv_create_qp, 128 work requests").readme(),
            Row::new("destroy-qp", "ibv_destroy_qp").readme(),
            Row::new("create-cq", "ibv_create_cq, 255 entries").readme(),
            Row::new("destroy-cq", "ibv_destroy_cq").readme(),
            Row::new("reg-mr", "ibv_reg_mr, a page").readme(),
            Row::new("dereg-mr", "ibv_dereg_mr").readme(),
            Row::new("open-device", "ibv_open_device, another one open").readme(),
            Row::new("close-device", "ibv_close_device").readme(),
        ],
    ),
    (
        "the floor: by hand, the same in both processes",
        &[
            Row::new("floor-post", "WQE, record, fence, 64 bytes of doorbell, fence"),
            Row::new("floor-list", "lists of 16, each"),
            Row::new("floor-recv", "receive WQE, record"),
            Row::new("floor-recv-16", "16 to a record, each"),
            Row::new("floor-poll", "one entry, record"),
            Row::new("floor-poll-16", "16 entries to a record, each"),
        ],
    ),
];

/// What objects take of memory.
pub(crate) const SIZES: &[Row] = &[
    Row::new("size-qp", "ibv_create_qp, 128 sends and receives, 64 bytes inline").readme(),
    Row::new("size-qp-ex", "ibv_create_qp_ex, the same, without memory windows").readme(),
    Row::new("size-cq", "ibv_create_cq, 255 entries").readme(),
    Row::new("size-srq", "ibv_create_srq, 255 receives").readme(),
    Row::new("size-mr", "ibv_reg_mr").readme(),
    Row::new("size-context", "ibv_open_device, without the stack of holdfast's one thread").readme(),
];

/// Programs on the live engine.
pub(crate) const PROGRAMS: &[Row] = &[
    Row::new("ib_write_bw", "4096 bytes, of the mean rate").readme(),
    Row::new("ib_send_lat", "64 bytes, t_typical").readme(),
    Row::new("ibv_rc_pingpong", "4096 bytes, there and back").readme(),
];

/// Every row.
pub(crate) fn all() -> impl Iterator<Item = &'static Row> {
    GROUPS.iter().flat_map(|(_, rows)| rows.iter()).chain(SIZES).chain(PROGRAMS)
}

/// The row of a name.
pub(crate) fn find(name: &str) -> Option<&'static Row> {
    all().find(|row| row.name == name)
}

/// Whether `name` is as `pattern` says, in which `*` stands for anything.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, rest)) => name.strip_prefix(before).is_some_and(|name| {
            (0..=name.len()).any(|at| name.get(at..).is_some_and(|name| matches(rest, name)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_floors_are_rows() {
        for row in all() {
            assert_eq!(all().filter(|other| other.name == row.name).count(), 1, "{}", row.name);
            assert!(row.floor.is_none_or(|floor| find(floor).is_some()), "{}", row.name);
        }
    }

    #[test]
    fn stars_stand_for_anything() {
        assert!(matches("post*", "post-read64") && matches("*", "") && matches("*-16", "recv-16"));
        assert!(matches("qp*-poll*", "qps16-poll-send-16") && matches("recv", "recv"));
        assert!(!matches("recv", "recv-16") && !matches("*post", "post-read64"));
    }
}
