//! A bounded table of flows: found by key, forgotten by age, woken by time, served in turn.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Instant;

/// How readily a flow is given up when the table is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Half open, or closing, or asked for only once: the first to go.
    Weak = 0,
    /// In use.
    Strong = 1,
}

/// No flow.
const NONE: u32 = u32::MAX;

/// A table of at most so many flows.
#[derive(Debug)]
pub(super) struct Table<K, T> {
    slots: Vec<Slot<K, T>>,
    free: Vec<u32>,
    by_key: HashMap<K, u32>,
    /// Oldest and newest of each class.
    ages: [(u32, u32); 2],
    /// Flows that want to be served.
    queue: VecDeque<u32>,
    /// At most one deadline a flow.
    deadlines: BTreeSet<(Instant, u32)>,
    limit: usize,
}

#[derive(Debug)]
struct Slot<K, T> {
    flow: Option<(K, T)>,
    class: Class,
    older: u32,
    newer: u32,
    queued: bool,
    deadline: Option<Instant>,
}

impl<K: Copy + Eq + Hash, T> Table<K, T> {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            ages: [(NONE, NONE); 2],
            queue: VecDeque::new(),
            deadlines: BTreeSet::new(),
            limit: limit.clamp(1, 1 << 20),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    pub(super) fn find(&self, key: &K) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(super) fn get(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.flow.as_mut().map(|(_, flow)| flow)
    }

    /// The flow that has gone unused for longest, of the weakest class that has any.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.ages.iter().map(|(oldest, _)| *oldest).find(|index| *index != NONE)
    }

    /// Adds a flow as the newest of its class. There must be room, and no flow of that key.
    pub(super) fn insert(&mut self, key: K, flow: T, class: Class) -> u32 {
        debug_assert!(!self.is_full() && !self.by_key.contains_key(&key));
        let slot =
            Slot { flow: Some((key, flow)), class, older: NONE, newer: NONE, queued: false, deadline: None };
        let index = match self.free.pop() {
            Some(index) => {
                // It may be waiting in the queue for the flow that was there before.
                let queued = self.slots[index as usize].queued;
                self.slots[index as usize] = Slot { queued, ..slot };
                index
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.by_key.insert(key, index);
        self.link(index);
        index
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<(K, T)> {
        let flow = self.slots.get_mut(index as usize)?.flow.take()?;
        self.by_key.remove(&flow.0);
        self.unlink(index);
        if let Some(deadline) = self.slots[index as usize].deadline.take() {
            self.deadlines.remove(&(deadline, index));
        }
        self.free.push(index);
        Some(flow)
    }

    /// Makes a flow the newest of `class`.
    pub(super) fn touch(&mut self, index: u32, class: Class) {
        if self.slots.get(index as usize).is_none_or(|slot| slot.flow.is_none()) {
            return;
        }
        self.unlink(index);
        self.slots[index as usize].class = class;
        self.link(index);
    }

    fn link(&mut self, index: u32) {
        let class = self.slots[index as usize].class as usize;
        let newest = self.ages[class].1;
        self.slots[index as usize].older = newest;
        self.slots[index as usize].newer = NONE;
        match newest {
            NONE => self.ages[class].0 = index,
            newest => self.slots[newest as usize].newer = index,
        }
        self.ages[class].1 = index;
    }

    fn unlink(&mut self, index: u32) {
        let Slot { class, older, newer, .. } = self.slots[index as usize];
        match older {
            NONE => self.ages[class as usize].0 = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.ages[class as usize].1 = older,
            newer => self.slots[newer as usize].older = older,
        }
    }

    /// Has a flow served after those that wait already.
    pub(super) fn queue(&mut self, index: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize)
            && slot.flow.is_some()
            && !std::mem::replace(&mut slot.queued, true)
        {
            self.queue.push_back(index);
        }
    }

    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// The next flow to serve. It may be gone.
    pub(super) fn next_queued(&mut self) -> Option<u32> {
        let index = self.queue.pop_front()?;
        self.slots[index as usize].queued = false;
        Some(index)
    }

    /// Has a flow woken at `at`, or earlier if that was wanted before.
    pub(super) fn schedule(&mut self, index: u32, at: Instant) {
        let Some(slot) = self.slots.get_mut(index as usize).filter(|slot| slot.flow.is_some()) else {
            return;
        };
        if slot.deadline.is_some_and(|deadline| deadline <= at) {
            return;
        }
        if let Some(deadline) = slot.deadline.replace(at) {
            self.deadlines.remove(&(deadline, index));
        }
        self.deadlines.insert((at, index));
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// The next flow whose time has come. Its deadline is spent.
    pub(super) fn due(&mut self, now: Instant) -> Option<u32> {
        let &(at, index) = self.deadlines.first().filter(|(at, _)| *at <= now)?;
        self.deadlines.remove(&(at, index));
        self.slots[index as usize].deadline = None;
        Some(index)
    }
}

#[cfg(test)]
#[path = "flows_test.rs"]
mod tests;
