//! What is carried out in the guest between two marks on its console.

/// A fixed amount of work for the guest's shell.
#[derive(Debug)]
pub(crate) struct Workload {
    /// Its name: one word.
    pub(crate) name: &'static str,
    /// What it stands for.
    pub(crate) what: &'static str,
    /// Commands for busybox's shell, in a folder of their own. Their output is the result, one word, which must be the
    /// same in every monitor.
    pub(crate) script: &'static str,
}

/// The workloads, in the order in which they run. Each is some hundreds of millions of instructions: ten seconds or so
/// for an interpreter, long against the precision of the marks for a translator.
pub(crate) const WORKLOADS: &[Workload] = &[
    Workload {
        name: "sha256sum",
        what: "integer arithmetic in registers",
        script: "cat /bin/busybox /bin/busybox /bin/busybox /bin/busybox /bin/busybox /bin/busybox | sha256sum | cut -c1-64",
    },
    Workload {
        name: "gzip",
        what: "tables in memory, branches that depend on data",
        script: "gzip -c /bin/busybox | gzip -dc | md5sum | cut -c1-32",
    },
    Workload {
        name: "awk",
        what: "floating point and calls through pointers, in an interpreter of its own",
        script: "awk 'BEGIN { for (i = 1; i <= 150000; i++) sum += i * 0.37 / (i % 7 + 1.5); printf \"%.9f\\n\", sum }'",
    },
    Workload {
        name: "sort",
        what: "pointers into more memory than caches and TLBs hold",
        script: "seq 60000 -1 1 >lines; sort lines >sorted; md5sum sorted | cut -c1-32",
    },
    Workload {
        name: "read-write",
        what: "system calls, two for every byte",
        script: "dd if=/bin/busybox of=copy bs=1 count=80000 2>/dev/null; md5sum copy | cut -c1-32",
    },
    Workload {
        name: "fork-exec",
        what: "processes that come and go: page tables, page faults, TLB flushes",
        script: "i=0; while [ $i -lt 200 ]; do /bin/busybox true; i=$((i + 1)); done; echo $i",
    },
];
