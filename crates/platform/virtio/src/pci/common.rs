//! The common configuration structure and the device status machine (virtio 1.2 §2.1, §4.1.4.3).

use std::sync::atomic::Ordering;

use posada_devices::StateError;
use posada_memory::vm_memory::GuestAddress;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use crate::feature;
use crate::interrupt::{Interrupt, NEEDS_RESET, NO_VECTOR};
use crate::rings::Rings;

/// Offsets of the registers.
mod register {
    pub(super) const DEVICE_FEATURE_SELECT: u16 = 0x00;
    pub(super) const DEVICE_FEATURE: u16 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u16 = 0x08;
    pub(super) const DRIVER_FEATURE: u16 = 0x0c;
    pub(super) const CONFIGURATION_VECTOR: u16 = 0x10;
    pub(super) const QUEUES: u16 = 0x12;
    pub(super) const STATUS: u16 = 0x14;
    pub(super) const GENERATION: u16 = 0x15;
    pub(super) const QUEUE_SELECT: u16 = 0x16;
    pub(super) const QUEUE_SIZE: u16 = 0x18;
    pub(super) const QUEUE_VECTOR: u16 = 0x1a;
    pub(super) const QUEUE_ENABLE: u16 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFFSET: u16 = 0x1e;
    /// Descriptors, driver's area, device's area: eight bytes each.
    pub(super) const QUEUE_AREAS: u16 = 0x20;
    pub(super) const QUEUE_AREAS_END: u16 = 0x38;
    pub(super) const QUEUE_RESET: u16 = 0x3a;
}

/// Bits of the device status register.
mod status {
    pub(super) const DRIVER_OK: u8 = 4;
    pub(super) const FEATURES_OK: u8 = 8;
    /// Those that the driver sets.
    pub(super) const DRIVERS: u8 = 0x8f;
}

/// One queue as the driver has set it up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct QueueState {
    /// How many entries: a power of two.
    size: u16,
    /// Guest physical addresses of the descriptors, the driver's area and the device's area.
    areas: [u64; 3],
    enabled: bool,
    vector: u16,
    /// How far the device has come, when saved.
    next_available: u16,
    next_used: u16,
}

/// The saved state of the common configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommonState {
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    status: u8,
    generation: u8,
    configuration_vector: u16,
    queues: Vec<QueueState>,
}

#[cfg(test)]
impl CommonState {
    /// Puts a queue where there is no memory.
    pub(super) fn break_queue_for_test(&mut self) {
        self.queues[0].areas[0] = !0xf;
    }
}

/// What a write asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Reset,
    Go,
    ResetQueue(usize),
}

/// The registers, but for those that the device's threads share.
#[derive(Debug)]
pub(super) struct Common {
    offered: u64,
    max_sizes: Vec<u16>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: Vec<QueueState>,
}

fn fresh(size: u16) -> QueueState {
    QueueState { size, vector: NO_VECTOR, ..QueueState::default() }
}

/// Whether the driver has got so far that the device works.
pub(super) fn is_running(interrupt: &Interrupt) -> bool {
    const ON: u8 = status::DRIVER_OK | status::FEATURES_OK;
    interrupt.status.load(Ordering::Acquire) & (ON | NEEDS_RESET) == ON
}

/// The 32 bits of `features` that `select` selects.
fn part(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl Common {
    pub(super) fn new(sizes: &[u16], offered: u64) -> Self {
        Self {
            offered,
            max_sizes: sizes.to_vec(),
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            queues: sizes.iter().map(|size| fresh(*size)).collect(),
        }
    }

    /// What driver and device have agreed on.
    pub(super) fn features(&self) -> u64 {
        self.driver_features & self.offered
    }

    fn selected(&mut self) -> Option<(usize, &mut QueueState)> {
        let index = usize::from(self.queue_select);
        Some((index, self.queues.get_mut(index)?))
    }

    /// Reads a register. Those of a queue that does not exist are zero.
    pub(super) fn read(&mut self, offset: u16, size: u8, interrupt: &Interrupt) -> u32 {
        let queue = self.queues.get(usize::from(self.queue_select)).copied();
        let of_queue = |read: fn(QueueState) -> u32| queue.map_or(0, read);
        match (offset, size) {
            (register::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select,
            (register::DEVICE_FEATURE, 4) => part(self.offered, self.device_feature_select),
            (register::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select,
            (register::DRIVER_FEATURE, 4) => part(self.driver_features, self.driver_feature_select),
            (register::CONFIGURATION_VECTOR, 2) => {
                interrupt.configuration_vector.load(Ordering::Acquire).into()
            }
            (register::QUEUES, 2) => self.queues.len() as u32,
            (register::STATUS, 1) => interrupt.status.load(Ordering::Acquire).into(),
            (register::GENERATION, 1) => interrupt.generation.load(Ordering::Acquire).into(),
            // Each queue is notified at the offset of its number.
            (register::QUEUE_SELECT | register::QUEUE_NOTIFY_OFFSET, 2) => self.queue_select.into(),
            (register::QUEUE_SIZE, 2) => of_queue(|queue| queue.size.into()),
            (register::QUEUE_VECTOR, 2) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (register::QUEUE_ENABLE, 2) => of_queue(|queue| queue.enabled.into()),
            (register::QUEUE_AREAS..register::QUEUE_AREAS_END, 4) if offset.is_multiple_of(4) => {
                let (area, high) = area(offset);
                queue.map_or(0, |queue| (queue.areas[area] >> high) as u32)
            }
            _ => 0,
        }
    }

    /// Writes a register. What the driver may not write now stays as it is.
    pub(super) fn write(
        &mut self,
        offset: u16,
        size: u8,
        value: u32,
        rings: &Rings,
        interrupt: &Interrupt,
    ) -> Option<Action> {
        let settled = interrupt.status.load(Ordering::Acquire) & status::FEATURES_OK != 0;
        let vectors = self.queues.len() as u16 + 1;
        // One that does not exist cannot be had, which the driver sees when it reads it back (§4.1.5.1.2.1).
        let vector = |value: u32| if value as u16 >= vectors { NO_VECTOR } else { value as u16 };
        match (offset, size) {
            (register::DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value,
            (register::DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value,
            (register::DRIVER_FEATURE, 4) if !settled => self.set_driver_features(value),
            (register::CONFIGURATION_VECTOR, 2) => {
                interrupt.configuration_vector.store(vector(value), Ordering::Release);
            }
            (register::STATUS, 1) => return self.write_status(value as u8, interrupt),
            (register::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (register::QUEUE_SIZE, 2) => {
                let most = self.max_sizes.get(usize::from(self.queue_select)).copied()?;
                let (_, queue) = self.selected()?;
                let size = value as u16;
                if !queue.enabled && size.is_power_of_two() && size <= most {
                    queue.size = size;
                }
            }
            (register::QUEUE_VECTOR, 2) => {
                let (index, queue) = self.selected()?;
                queue.vector = vector(value);
                interrupt.queue_vectors[index].store(queue.vector, Ordering::Release);
            }
            (register::QUEUE_ENABLE, 2) if value == 1 => self.enable_queue(rings),
            (register::QUEUE_AREAS..register::QUEUE_AREAS_END, 4) if offset.is_multiple_of(4) => {
                let (_, queue) = self.selected()?;
                if !queue.enabled {
                    let (area, high) = area(offset);
                    let kept = queue.areas[area] & !(0xffff_ffff << high);
                    queue.areas[area] = kept | u64::from(value) << high;
                }
            }
            (register::QUEUE_RESET, 2) if value == 1 && self.features() & feature::RING_RESET != 0 => {
                let (index, queue) = self.selected()?;
                return queue.enabled.then_some(Action::ResetQueue(index));
            }
            _ => {}
        }
        None
    }

    fn set_driver_features(&mut self, value: u32) {
        let (shift, value) = match self.driver_feature_select {
            0 => (0, u64::from(value)),
            1 => (32, u64::from(value)),
            _ => return,
        };
        self.driver_features = self.driver_features & !(0xffff_ffff << shift) | value << shift;
    }

    /// The driver's next step, or its reset. It sets bits and never clears one but by a reset.
    fn write_status(&mut self, value: u8, interrupt: &Interrupt) -> Option<Action> {
        if value == 0 {
            return Some(Action::Reset);
        }
        let before = interrupt.status.load(Ordering::Acquire);
        let mut set = value & status::DRIVERS & !before;
        let acceptable =
            self.driver_features & !self.offered == 0 && self.driver_features & feature::VERSION_1 != 0;
        if !acceptable {
            // The driver sees that the bit has not stayed (§3.1.1, step 6).
            set &= !status::FEATURES_OK;
        }
        interrupt.status.fetch_or(set, Ordering::AcqRel);
        (set & status::DRIVER_OK != 0 && is_running(interrupt)).then_some(Action::Go)
    }

    fn enable_queue(&mut self, rings: &Rings) {
        let event_idx = self.features() & feature::EVENT_IDX != 0;
        let Some(max_size) = self.max_sizes.get(usize::from(self.queue_select)).copied() else { return };
        let Some((index, queue)) = self.selected() else { return };
        if queue.enabled {
            return;
        }
        match ring(queue, max_size, event_idx) {
            Ok(ring) if ring.is_valid(rings.ram().view()) => {
                queue.enabled = true;
                *rings.queue(index) = ring;
            }
            _ => {
                let [descriptors, driver, device] = queue.areas;
                rings.fail(format_args!(
                    "queue {index} of {} entries cannot be at {descriptors:#x}, {driver:#x}, {device:#x}",
                    queue.size
                ));
            }
        }
    }

    /// A queue has been reset by itself (§2.6.1).
    pub(super) fn queue_was_reset(&mut self, index: usize, rings: &Rings) {
        let vector = self.queues[index].vector;
        self.queues[index] = QueueState { vector, ..fresh(self.max_sizes[index]) };
        rings.queue(index).reset();
    }

    /// The device's reset.
    pub(super) fn reset(&mut self, rings: &Rings) {
        let sizes = std::mem::take(&mut self.max_sizes);
        *self = Self::new(&sizes, self.offered);
        for index in 0..rings.len() {
            rings.queue(index).reset();
        }
    }

    pub(super) fn state(&self, rings: &Rings, interrupt: &Interrupt) -> CommonState {
        let queues = self.queues.iter().enumerate().map(|(index, queue)| {
            let ring = rings.queue(index);
            QueueState { next_available: ring.next_avail(), next_used: ring.next_used(), ..*queue }
        });
        CommonState {
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            status: interrupt.status.load(Ordering::Acquire),
            generation: interrupt.generation.load(Ordering::Acquire),
            configuration_vector: interrupt.configuration_vector.load(Ordering::Acquire),
            queues: queues.collect(),
        }
    }

    pub(super) fn restore(
        &mut self,
        state: &CommonState,
        rings: &Rings,
        interrupt: &Interrupt,
    ) -> Result<(), StateError> {
        let bad = |found: String| StateError::new("virtio device", found);
        if state.queues.len() != self.queues.len() {
            return Err(bad(format!("{} queues", state.queues.len())));
        }
        let event_idx = state.driver_features & self.offered & feature::EVENT_IDX != 0;
        for (index, queue) in state.queues.iter().enumerate() {
            let max_size = self.max_sizes[index];
            if !queue.size.is_power_of_two() || queue.size > max_size {
                return Err(bad(format!("a queue of {} entries", queue.size)));
            }
            let mut slot = rings.queue(index);
            slot.reset();
            if queue.enabled {
                *slot = ring(queue, max_size, event_idx)
                    .ok()
                    .filter(|ring| ring.is_valid(rings.ram().view()))
                    .ok_or_else(|| bad(format!("queue {index} at {:#x?}", queue.areas)))?;
            }
            interrupt.queue_vectors[index].store(queue.vector, Ordering::Release);
        }
        interrupt.configuration_vector.store(state.configuration_vector, Ordering::Release);
        interrupt.status.store(state.status, Ordering::Release);
        interrupt.generation.store(state.generation, Ordering::Release);
        self.device_feature_select = state.device_feature_select;
        self.driver_feature_select = state.driver_feature_select;
        self.driver_features = state.driver_features;
        self.queue_select = state.queue_select;
        self.queues.clone_from(&state.queues);
        Ok(())
    }
}

/// Which of the three areas a register belongs to, and the shift of its half.
fn area(offset: u16) -> (usize, u32) {
    let word = (offset - register::QUEUE_AREAS) / 4;
    (usize::from(word / 2), u32::from(word % 2) * 32)
}

/// The queue that a driver has described.
fn ring(queue: &QueueState, max_size: u16, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
    let mut ring = Queue::new(max_size)?;
    ring.try_set_size(queue.size)?;
    let [descriptors, driver, device] = queue.areas.map(GuestAddress);
    ring.try_set_desc_table_address(descriptors)?;
    ring.try_set_avail_ring_address(driver)?;
    ring.try_set_used_ring_address(device)?;
    ring.set_event_idx(event_idx);
    ring.set_next_avail(queue.next_available);
    ring.set_next_used(queue.next_used);
    ring.set_ready(true);
    Ok(ring)
}
