//! What the scoreboard has: the names that `guests/scoreboard` knows, and what they stand for.

/// Which mean a row belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// One thing that processors or kernels do.
    Small,
    /// What people run.
    Programs,
}

impl Group {
    /// All of them, in the order of tables.
    pub(crate) const ALL: [Self; 2] = [Self::Small, Self::Programs];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Small => "Small tests",
            Self::Programs => "Whole programs",
        }
    }
}

/// A row.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    /// What a unit of work is.
    pub(crate) unit: &'static str,
    /// What it stands for.
    pub(crate) what: &'static str,
}

const fn small(name: &'static str, unit: &'static str, what: &'static str) -> Row {
    Row { name, group: Group::Small, unit, what }
}

const fn program(name: &'static str, what: &'static str) -> Row {
    Row { name, group: Group::Programs, unit: "run", what }
}

/// All of them, in the order in which they run.
pub(crate) const ROWS: &[Row] = &[
    small("call", "call", "calls and returns: Fibonacci numbers by recursion"),
    small("integer", "step", "arithmetic in registers: shifts, rotations, a multiplication"),
    small("indirect-call", "call", "calls through a table, in an order that nobody predicts"),
    small("scalar-double", "step", "doubles one by one: five bodies that attract each other"),
    small("sieve", "number", "stores into 4 MiB: the sieve of Eratosthenes"),
    small("sort", "number", "loads, stores, branches that depend on data: quicksort of 100,000 numbers"),
    small("chase-1m", "hop", "a load that waits for the one before, in 1 MiB"),
    small("chase-64m", "hop", "the same in 64 MiB: beyond caches and TLBs"),
    small("copy-small", "copy", "memcpy of 8 to 71 bytes"),
    small("copy-large", "MiB", "memcpy of 8 MiB"),
    small("packed-sse", "vector", "seven operations on four floats, a load and a store"),
    small("packed-avx2", "vector", "ten operations on eight floats, a load and a store"),
    small("x87", "step", "two multiplications and an addition in 80 bits"),
    small("getppid", "call", "system calls"),
    small("page-fault", "page", "a page mapped, touched and given back"),
    small("fork-wait", "process", "processes that end at once"),
    small("fork-exec", "process", "processes that execute this program and end"),
    small("pipe", "round", "a byte to another process and one back, on one processor"),
    program("gzip", "compresses 2 MiB of text"),
    program("sha256sum", "of 20 MiB"),
    program("awk", "mawk counts words and adds numbers"),
    program("python3", "objects, dictionaries, strings, numbers"),
    program("sqlite3", "inserts, an index, joins, sums, in memory"),
    program("cc", "GCC's cc1 -O2 compiles a dozen functions"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_each_is_there_once() {
        let mut names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        assert!(names.iter().all(|name| !name.contains([' ', ','])));
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
