//! The translator: one virtual CPU, and what goes on between stretches of translated code.

use std::arch::asm;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use posada_memory::PAGE_SIZE;
use posada_vcpu::x86::State;
use posada_vcpu::{Activity, Connections, Error, Exit, Vcpu};
use posada_x86::{Assist, Between, Interpreter, Model, Random, View};

use crate::alarm::Alarm;
use crate::block::{Access, Mode, SAVED_ENTRY};
use crate::cache::{self, Code, CodeCache, Decoding, Found};
use crate::context::{Context, SPILLED};
use crate::entry::{self, reason};
use crate::fault::{Guard, Guarded};
use crate::helpers::helper;
use crate::jumps::{self, Jumps};
use crate::memory::Mapping;
use crate::native::Unit;
use crate::stats::{Left, Stats, work};
use crate::stub::{Kind, Stub};
use crate::tlb::Tlb;

/// Bytes of code, unless told otherwise.
pub const DEFAULT_CODE_CACHE: usize = 256 << 20;

/// Everything that translated code's calls back need.
pub(crate) struct Machine {
    pub(crate) interpreter: Interpreter,
    cache: CodeCache,
    tlb: Tlb,
    jumps: Jumps,
    /// [`Assist::smap`] when the code was made.
    smap: bool,
    /// The interpreter has run code of its own choice, and watches pages that the TLB may let stores into.
    unseen: bool,
    /// What the blocks that each table of jumps leads to are made for.
    modes: [Option<Mode>; jumps::TABLES],
    /// What the code is made for that runs, or ran last.
    mode: Mode,
    /// Blocks lead to one another; if not, each is left at its end.
    linked: bool,
    /// The block that ran last, and its linear address; only kept if not linked.
    last: Option<(u64, Code)>,
    /// The next instruction is for the interpreter, before anything else; only if not linked.
    interrupted: bool,
    stats: Stats,
    pub(crate) activity: Arc<Activity>,
    /// Exceptions that the host's processor raised.
    signals: AtomicU64,
}

/// A block, for those who want to see it.
pub(crate) struct LastBlock {
    /// The linear address of its guest code.
    pub(crate) rip: u64,
    /// Guest instructions.
    pub(crate) instructions: u8,
    /// Where its code is, and its bytes.
    pub(crate) place: usize,
    pub(crate) code: Vec<u8>,
}

/// The binary translator: one virtual CPU, whose instructions run on the host's processor.
pub struct Translator {
    /// Lives as long as this does; a raw pointer because translated code calls back.
    machine: NonNull<Machine>,
    context: NonNull<Context>,
    _mapping: Mapping,
}

// SAFETY: machine and context belong to this value alone, and translated code runs only inside `run`, which has it
// exclusively.
unsafe impl Send for Translator {}

impl Drop for Translator {
    fn drop(&mut self) {
        // The alarm refers to the context.
        self.machine().interpreter.connections().attention.set_alarm(None);
        // SAFETY: the pointer came from a box, in `new`, and nobody else has it.
        drop(unsafe { Box::from_raw(self.machine.as_ptr()) });
    }
}

/// The alarm of a context, for other threads to ring.
struct Bell(NonNull<Alarm>);

// SAFETY: all of an alarm is atomic.
unsafe impl Send for Bell {}

impl Bell {
    fn ring(&self) {
        // SAFETY: the alarm lives as long as the context, until its translator is dropped, which takes this away first.
        unsafe { self.0.as_ref() }.ring();
    }
}

impl Translator {
    /// A virtual CPU in its reset state, with room for `code_cache` bytes of code.
    pub fn new(connections: Connections, model: Model, code_cache: usize) -> Result<Self, Error> {
        if let Some(name) = lacking() {
            return Err(Error::Unsupported(format!(
                "the translator needs a host processor with {name}; take the engine \"interpret\""
            )));
        }
        if let Some(missing) = model.host_lacks() {
            return Err(Error::Unsupported(format!(
                "the host's processor has no {missing}, which CPU model {:?} needs; take \"x86-64-v2\"",
                model.name()
            )));
        }
        let failed = |error: std::io::Error| Error::Engine(format!("no memory for translated code: {error}"));
        let (mapping, mut context) = Context::allocate().map_err(failed)?;
        let unit = Unit::new().map_err(failed)?;
        let cache = CodeCache::new(code_cache, connections.ram.is_low()).map_err(failed)?;
        // SAFETY: nobody else has it.
        let c = unsafe { context.as_mut() };
        let attention = Arc::clone(&connections.attention);
        let machine = Machine {
            tlb: Tlb::new(c),
            jumps: Jumps::new(c),
            interpreter: Interpreter::with_native(connections, model, Box::new(unit)),
            cache,
            smap: false,
            unseen: false,
            modes: [None; jumps::TABLES],
            mode: Mode::ALL,
            linked: true,
            last: None,
            interrupted: false,
            stats: Stats::default(),
            activity: Arc::new(Activity::new(&work::WORK)),
            signals: AtomicU64::new(0),
        };
        let machine = NonNull::from(Box::leak(Box::new(machine)));
        c.machine = machine.as_ptr().cast();
        let bell = Bell(NonNull::from(c.alarm()));
        attention.set_alarm(Some(Box::new(move || bell.ring())));
        c.routines = entry::routines(monitor, helper);
        Ok(Self { machine, context, _mapping: mapping })
    }

    /// Whether this host's processor has what translated code needs.
    pub fn is_supported() -> bool {
        lacking().is_none()
    }

    fn parts(&mut self) -> (&mut Machine, &mut Context) {
        // SAFETY: both pointers are good for as long as `self` is, and nothing else refers to what they point to:
        // translated code is not running, for it runs only inside `run`, between uses of these.
        unsafe { (self.machine.as_mut(), self.context.as_mut()) }
    }

    fn machine(&self) -> &Machine {
        // SAFETY: as in `parts`.
        unsafe { self.machine.as_ref() }
    }

    /// What it has done so far.
    pub fn stats(&self) -> Stats {
        let machine = self.machine();
        let mut stats = machine.stats.clone();
        stats.code_bytes = machine.cache.used() as u64;
        stats.counts = machine.interpreter.counts();
        stats.signals = machine.signals.load(Ordering::Relaxed);
        stats.with_samples(&machine.activity)
    }

    /// The interpreter that takes what is not translated.
    #[cfg(test)]
    pub(crate) fn assistant(&mut self) -> &mut Interpreter {
        &mut self.parts().0.interpreter
    }

    /// From now on leaves each block at its end, and takes random numbers from here.
    pub(crate) fn unlink(&mut self, random: Random) {
        let (machine, _) = self.parts();
        machine.interpreter.set_random(random);
        machine.linked = false;
    }

    /// Sees to what waits and runs one block, or has one instruction interpreted, [on guard](Self::on_guard). Then no
    /// page is lent.
    pub(crate) fn one_block(&mut self) -> Option<Exit> {
        let (machine, context) = self.parts();
        machine.unseen = true;
        machine.jumps.clear(context, true);
        machine.last = None;
        if std::mem::take(&mut machine.interrupted) {
            machine.interpret();
            return None;
        }
        self.once(&mut None)
    }

    /// Whether an instruction is to be interpreted before anything else is looked at.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.machine().interrupted
    }

    /// The block that [`one_block`](Self::one_block) has run.
    pub(crate) fn last_block(&self) -> Option<LastBlock> {
        let machine = self.machine();
        let (rip, code) = machine.last?;
        let (place, bytes) = machine.cache.bytes(code);
        Some(LastBlock { rip, instructions: code.instructions, place, code: bytes })
    }

    fn run_here(&mut self) -> Exit {
        // The jump that was left unfinished, and where it leads.
        let mut tie = None;
        loop {
            if let Some(exit) = self.once(&mut tie) {
                return exit;
            }
        }
    }

    /// Sees to what waits, then runs translated code once, until it leaves, or has an instruction interpreted.
    fn once(&mut self, tie: &mut Option<(u32, u64)>) -> Option<Exit> {
        let (machine, context) = self.parts();
        let (code, mode) = match machine.next(context, tie.take()) {
            Next::Exit(exit) => return Some(exit),
            Next::Again => return None,
            Next::Code(code, mode) => (code, mode),
        };
        machine.go_inside(context);
        machine.activity.set(work::TRANSLATED);
        // SAFETY: `gs` is based at this context (`on_guard`); `code` was found for the view in force; no reference
        // to machine or context is used while it runs.
        let why = unsafe {
            match mode.routine() {
                0 => entry::enter(code),
                1 => entry::enter_with_vectors(code),
                _ => entry::enter_with_wide_vectors(code),
            }
        };
        let (machine, context) = self.parts();
        machine.activity.set(work::DISPATCHING);
        machine.interpreter.membership().leave();
        machine.take_back(context);
        match why {
            reason::TIE if machine.linked => *tie = Some((context.stub, context.rip)),
            reason::TIE => {}
            reason::ATTENTION => machine.stats.attention += 1,
            _ if machine.linked => machine.interpret(),
            _ => machine.interrupted = true,
        }
        None
    }

    /// Does something during which translated code may run.
    pub(crate) fn on_guard<T>(&mut self, task: impl FnOnce(&mut Self) -> T) -> T {
        let before = gs_base();
        // SAFETY: nothing of the host's uses `gs` in 64-bit programs; it is put back below.
        unsafe { set_gs_base(self.context.as_ptr() as u64) };
        let (start, len) = self.machine().cache.range();
        let whose = self.machine.as_ptr().cast_const().cast();
        // SAFETY: `recover` is given the machine, which lives longer than the guard.
        let guard = unsafe { Guard::new(Guarded { start, len, recover, whose }) };
        self.machine().activity.set(work::DISPATCHING);
        let result = task(self);
        self.machine().activity.set(work::OUTSIDE);
        drop(guard);
        // SAFETY: it is what was there before.
        unsafe { set_gs_base(before) };
        result
    }
}

/// What the host's processor lacks.
fn lacking() -> Option<&'static str> {
    let needs = [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("BMI1", std::arch::is_x86_feature_detected!("bmi1")),
        ("BMI2", std::arch::is_x86_feature_detected!("bmi2")),
    ];
    needs.iter().find(|(_, there)| !there).map(|(name, _)| *name)
}

/// Where the page behind that of `linear` begins.
fn next_page(linear: u64) -> u64 {
    (linear | (PAGE_SIZE as u64 - 1)).wrapping_add(1)
}

enum Next {
    Exit(Exit),
    /// Something was done; look again.
    Again,
    /// Translated code, and what it is made for.
    Code(usize, Mode),
}

/// How code was found.
#[derive(Clone, Copy)]
struct FoundAs {
    /// Everything else has been forgotten.
    alone: bool,
    /// It is an instruction that lies in two pages.
    crossing: bool,
}

/// Where a jump leads.
struct Target {
    /// An entry for saved flags.
    code: usize,
    /// The page by which it can be found again, or zero.
    page: u32,
    /// The table of jumps has it.
    in_table: bool,
}

impl FoundAs {
    fn may_be_tied(self) -> bool {
        !self.alone && !self.crossing
    }
}

/// CF, PF, AF, ZF and SF: what `lahf` gives.
const LAHF: u64 = 0xd5;
const OF: u64 = 1 << 11;
const IF: u64 = 1 << 9;
const AC: u64 = 1 << 18;

impl Machine {
    /// What to run next.
    fn next(&mut self, context: &mut Context, mut tie: Option<(u32, u64)>) -> Next {
        let interpreter = &mut self.interpreter;
        if context.alarm().has_rung() {
            // Before the look at what it is about: whoever comes after that rings again.
            context.alarm().answer(context.epochs);
        }
        let waits = interpreter.connections().attention.is_raised();
        let mut view = interpreter.view();
        if waits || view.is_none() {
            // What comes between may lead anywhere, with other rights, and even to the jump's target.
            tie = None;
            self.unseen |= view.is_none();
            match interpreter.between_instructions() {
                Between::Exit(exit) => return Next::Exit(exit),
                Between::Stepped => return Next::Again,
                Between::Done => {}
            }
            view = interpreter.view();
        }
        let Some(view) = view else {
            self.unseen = true;
            self.interpret();
            return Next::Again;
        };
        self.look_at_changes(context);
        let rip = self.interpreter.rip();
        let mut mode = self.mode(view, tie.is_some() && self.mode.vectors);
        self.prepare_jumps(context, mode);
        let known = context.jumps[mode.jumps()][jumps::index(rip, mode.jumps())];
        if tie.is_none() && known.linear == rip {
            self.mode = mode;
            self.hand_over(context, rip, mode);
            return Next::Code(known.host as usize, mode);
        }
        let Some(at) = self.interpreter.place_code(rip) else {
            self.interpret();
            return Next::Again;
        };
        let Some((mut code, mut found)) = self.find_code(context, rip, at, mode) else {
            self.interpret();
            return Next::Again;
        };
        let wide = self.mode(view, true);
        if code.wants_vectors
            && wide.vectors
            && let Some((other, how)) = self.find_code(context, rip, at, wide)
        {
            mode = wide;
            code = other;
            found = FoundAs { alone: found.alone | how.alone, ..how };
            self.prepare_jumps(context, mode);
        }
        if !self.linked {
            self.last = Some((rip, code));
        }
        let before = std::mem::replace(&mut self.mode, mode);
        let alike = mode == Mode { view: mode.view, ..before };
        match tie {
            Some((stub, to)) if to == rip && found.may_be_tied() && alike => {
                self.cache.tie(stub, code);
                self.stats.ties += 1;
            }
            _ => {
                self.remember_jump(context, mode, rip, code, found.crossing);
            }
        }
        self.hand_over(context, rip, mode);
        Next::Code(self.cache.saved(code), mode)
    }

    /// Forgets jumps to code that is for something else than code is now to be made for.
    fn prepare_jumps(&mut self, context: &mut Context, mode: Mode) {
        let table = mode.jumps();
        if self.modes[table].replace(mode) != Some(mode) {
            self.jumps.clear_one(context, table);
        }
    }

    /// What code is to be made for. In a supervisor's view the vector registers are only in the host's if that is asked
    /// for.
    fn mode(&self, view: View, vectors: bool) -> Mode {
        let interpreter = &self.interpreter;
        let user = view == View::User;
        let vectors = (user || vectors) && interpreter.sse();
        Mode {
            view: view as u8,
            vectors,
            unmasked: vectors && interpreter.sse_unmasked(),
            x87: user && vectors && interpreter.x87_masked(),
            avx: vectors && interpreter.avx(),
        }
    }

    /// The code for what is at `linear`, which is at `at` of RAM, translated now if need be. `None`: it goes on where
    /// nothing can be fetched from.
    fn find_code(
        &mut self,
        context: &mut Context,
        linear: u64,
        at: usize,
        mode: Mode,
    ) -> Option<(Code, FoundAs)> {
        let (code, found, second) = {
            let model = self.interpreter.model().clone();
            let decoding = Decoding {
                options: model.decoder_options(),
                features: &|i| i.cpuid_features().iter().all(|feature| model.announces(*feature)),
            };
            let second = if CodeCache::crosses(at, &self.interpreter.connections().ram, &decoding) {
                let next = next_page(linear);
                Some(self.interpreter.place_code(next)?)
            } else {
                None
            };
            let (cache, ram) = (&mut self.cache, &self.interpreter.connections().ram);
            let before = self.activity.set(work::TRANSLATING);
            let (code, found) = match second {
                Some(second) => cache.find_crossing((at, second), mode, ram, &decoding, &mut self.stats),
                None => cache.find(at, mode, ram, &decoding, &mut self.stats),
            };
            self.activity.set(before);
            (code, found, second)
        };
        if found == Found::NewAlone {
            self.jumps.clear(context, true);
            jumps::forget_numbers(context, self.cache.most_links());
        }
        Some((code, FoundAs { alone: found == Found::NewAlone, crossing: second.is_some() }))
    }

    /// Remembers where the code for `linear` is, which may be one instruction in two pages.
    fn remember_jump(
        &mut self,
        context: &mut Context,
        mode: Mode,
        linear: u64,
        code: Code,
        crossing: bool,
    ) -> Target {
        let target = self.target(linear, code, mode);
        let mut global = true;
        if crossing {
            global = self.interpreter.is_global(next_page(linear));
            // That page was looked up last.
            self.interpreter.place_code(linear);
        }
        global &= self.interpreter.is_global(linear);
        let in_table = self.jumps.insert(context, mode.jumps(), linear, target as u64, global);
        if crossing {
            self.jumps.add_page(next_page(linear));
        }
        let page = if self.linked { code.page } else { 0 };
        if page != 0 {
            Jumps::know(context, mode, linear, target as u64, page);
        }
        Target { code: target, page, in_table }
    }

    /// Where jumps to `linear`, whose code is known, are to lead.
    fn target(&mut self, linear: u64, code: Code, mode: Mode) -> usize {
        if self.linked { self.cache.saved(code) } else { self.cache.way_out(linear, mode) }
    }

    /// Lets the table of jumps know the code for a linear address. `None` if the dispatcher has to see to it.
    fn find_jump(&mut self, context: &mut Context, linear: u64, mode: Mode) -> Option<Target> {
        self.stats.jump_misses += 1;
        // Whoever rang may have been answered half-way.
        context.alarm().set(context.epochs);
        self.jumps.take_note(context);
        let before = self.activity.set(work::JUMPS);
        let known = self.find_jump_now(context, linear, mode);
        self.activity.set(before);
        known
    }

    fn find_jump_now(&mut self, context: &mut Context, linear: u64, mode: Mode) -> Option<Target> {
        let at = self.interpreter.place_code(linear)?;
        // What is running must not be forgotten now.
        let ram = &self.interpreter.connections().ram;
        if !self.cache.is_up_to_date(ram) || !self.cache.has_room() {
            return None;
        }
        // Who watches code waits for those inside, and is not to wait for itself.
        self.interpreter.membership().leave();
        let found = self.find_code(context, linear, at, mode);
        self.go_inside(context);
        match found {
            // That is for `next` to see to.
            Some((code, _)) if code.wants_vectors => None,
            Some((code, found)) => Some(self.remember_jump(context, mode, linear, code, found.crossing)),
            None => None,
        }
    }

    /// The rest of a block without groups, from a stub on; `None` if there cannot be one now.
    fn find_rest(&mut self, context: &mut Context, number: u32, stub: &Stub, mode: Mode) -> Option<usize> {
        let linear = context.code_base.wrapping_add(i64::from(stub.next) as u64);
        let at = self.interpreter.place_code(linear)?;
        let ram = &self.interpreter.connections().ram;
        if !self.cache.is_up_to_date(ram) || !self.cache.has_room() {
            return None;
        }
        let model = self.interpreter.model();
        let decoding = Decoding {
            options: model.decoder_options(),
            features: &|i| i.cpuid_features().iter().all(|feature| model.announces(*feature)),
        };
        let rest = self.cache.find_rest(number, stub, at, mode, ram, &decoding, &mut self.stats);
        if let Kind::Group { access, hole, .. } = stub.kind
            && !access.fits_at(access.address.linear(context))
        {
            self.cache.lead(hole, rest);
        }
        Some(rest)
    }

    /// From now on translated code may run, and store to pages that were lent; those that hold code by now are
    /// given back before.
    fn go_inside(&mut self, context: &mut Context) {
        let (membership, tlb) = (self.interpreter.membership(), &mut self.tlb);
        while !membership.enter() {
            let ram = &self.interpreter.connections().ram;
            let watched = |host: u64| ram.is_watched(ram.page_at_host(host as usize));
            membership.give_back(|| tlb.protect(context, watched));
        }
    }

    /// Forgets what is no longer true since translated code last ran.
    fn look_at_changes(&mut self, context: &mut Context) {
        if std::mem::take(&mut self.unseen) {
            self.tlb.clear_writes(context);
        }
        if self.cache.look_at_writes(&self.interpreter.connections().ram) {
            self.stats.invalidations += 1;
            self.jumps.clear(context, true);
        }
        if self.interpreter.smap() != self.smap {
            // `stac` and `clac` lead to another view than before.
            self.smap = !self.smap;
            self.cache.clear();
            self.jumps.clear(context, true);
            jumps::forget_numbers(context, self.cache.most_links());
        }
        let stale = self.interpreter.take_stale();
        if stale.is_nothing() {
            return;
        }
        self.stats.flushes += 1;
        let pages = stale.pages();
        let all = stale.all || pages.iter().any(|page| self.jumps.has_page(*page));
        if all || stale.context {
            self.jumps.clear(context, all);
        }
        if stale.all || stale.context {
            self.tlb.clear(context, stale.all);
        }
        for page in pages {
            Tlb::clear_page(context, *page);
        }
    }

    /// Lets the TLB know the page of an access; or says why that is not to be.
    fn know_page(&mut self, context: &mut Context, access: &Access, view: u8) -> Result<(), Left> {
        const IN_PAGE: u64 = PAGE_SIZE as u64 - 1;
        self.stats.tlb_misses += 1;
        let linear = access.address.linear(context);
        if !access.fits_at(linear) {
            return Err(Left::Crossing);
        }
        let at = self.interpreter.place(linear, access.write).ok_or(Left::Device)?;
        // Others may have written code, and so may have the marks that the walk sets in page tables.
        let ram = &self.interpreter.connections().ram;
        if !self.cache.is_up_to_date(ram) {
            return Err(Left::Code);
        }
        let host = if access.write { ram.lend(at) } else { ram.host_address(at) };
        let host = host.ok_or(Left::Code)?;
        let (page, global) = (host as u64 - (linear & IN_PAGE), self.interpreter.is_global(linear));
        self.tlb.insert(context, (view, access.write), linear, page, global);
        Ok(())
    }

    /// Whether all that is wrong with an access is that it is not aligned.
    fn is_merely_unaligned(context: &Context, access: &Access, view: u8) -> bool {
        let linear = access.address.linear(context);
        access.fits_at(linear) && Tlb::knows_low(context, (view, access.write), linear)
    }

    /// The same for a group of accesses, the first of which is a store or not. A page is not made dirty before it is
    /// stored to.
    fn know_group(
        &mut self,
        context: &mut Context,
        group: &Access,
        stores: bool,
        view: u8,
    ) -> Result<(), Left> {
        let (linear, kind) = (group.address.linear(context), (view, group.write));
        if !group.fits_at(linear) {
            return Err(Left::Crossing);
        }
        let on_stack = group.address.is_on_stack();
        self.stats.stack_misses += u64::from(on_stack);
        if on_stack && Tlb::set_stack(context, kind, linear) {
            return Ok(());
        }
        if group.write && !stores {
            return Err(Left::Code);
        }
        self.know_page(context, group, view)?;
        if on_stack && !Tlb::set_stack(context, kind, linear) {
            return Err(Left::Code);
        }
        Ok(())
    }

    fn interpret(&mut self) {
        self.stats.interpreted += 1;
        if self.stats.interpreted.is_multiple_of(Stats::SAMPLE) {
            self.sample();
        }
        let before = self.activity.set(work::INTERPRETING);
        self.interpreter.interpret();
        self.activity.set(before);
    }

    /// Counts what is about to be interpreted.
    #[cold]
    fn sample(&mut self) {
        let rip = self.interpreter.rip();
        let Some(at) = self.interpreter.place_code(rip) else { return };
        let ram = &self.interpreter.connections().ram;
        let len = (PAGE_SIZE - at % PAGE_SIZE).min(cache::LONGEST);
        let mut bytes = [0; cache::LONGEST];
        cache::load(ram, at, &mut bytes[..len]);
        let options = self.interpreter.model().decoder_options();
        let instruction = iced_x86::Decoder::new(64, &bytes[..len], options).decode();
        *self.stats.samples.entry(instruction.code()).or_default() += 1;
    }

    /// Gives translated code what it works on.
    fn hand_over(&mut self, context: &mut Context, rip: u64, mode: Mode) {
        self.stats.entries += 1;
        let rflags = self.interpreter.rflags();
        context.flags = (rflags & LAHF) << 8 | rflags >> 11 & 1;
        context.gpr = *self.interpreter.gpr();
        context.spilled = SPILLED.map(|number| context.gpr[usize::from(number)]);
        context.code_base = rip & !(PAGE_SIZE as u64 - 1);
        context.bases = self.interpreter.bases();
        context.selectors = self.interpreter.selectors().map(u64::from);
        context.system_flags = rflags & !(LAHF | OF | IF | AC);
        context.interrupt_flag = rflags & IF;
        context.access_flag = rflags & AC;
        context.interrupts_wait = u64::from(self.interpreter.interrupts_wait());
        if self.interpreter.connections().attention.is_raised() {
            context.alarm().ring();
        }
        if mode.x87 {
            context.x87.put(self.interpreter.x87());
        }
        if mode.vectors {
            context.ymm = ptr::from_mut(self.interpreter.ymm());
            context.mxcsr = *self.interpreter.mxcsr();
        } else {
            context.ymm = ptr::null_mut();
        }
    }

    /// Lets the interpreter look up addresses with the rights that translated code has by now: `stac` and `clac`
    /// change them.
    pub(crate) fn agree_on_rights(&mut self, context: &Context) {
        let rflags = self.interpreter.rflags();
        if rflags & AC != context.access_flag {
            self.interpreter.set_system_flags(rflags ^ AC);
        }
    }

    /// Takes back what translated code has left.
    fn take_back(&mut self, context: &mut Context) {
        if context.x87_loaded != 0 {
            context.x87_loaded = 0;
            context.routines.x87 = entry::load_x87_routine();
            context.x87.save(self.interpreter.x87());
        }
        for (number, value) in SPILLED.into_iter().zip(context.spilled) {
            context.gpr[usize::from(number)] = value;
        }
        *self.interpreter.gpr() = context.gpr;
        self.interpreter.set_rip(context.rip);
        self.interpreter.set_arithmetic_flags(context.flags >> 8 & LAHF | ((context.flags & 1) * OF));
        let flags = context.system_flags | context.interrupt_flag | context.access_flag;
        self.interpreter.set_system_flags(flags);
        self.interpreter.set_bases(context.bases);
        if !context.ymm.is_null() {
            *self.interpreter.mxcsr() = context.mxcsr;
        }
    }
}

/// What stubs call: see [`entry::Monitor`].
unsafe extern "C" fn monitor(context: *mut Context, number: u32) -> u64 {
    // SAFETY: translated code passes the context that it runs with; `run_here` uses no reference meanwhile.
    let context = unsafe { &mut *context };
    // SAFETY: as above; the machine is the one that the context was made with.
    let machine = unsafe { &mut *context.machine.cast::<Machine>() };
    machine.agree_on_rights(context);
    let Some(stub) = machine.cache.stub(number) else { unreachable!("a stub has the number of one") };
    let (place, why) = machine.at_stub(context, number, &stub);
    if place != 0 {
        machine.activity.set(work::TRANSLATED);
        return place;
    }
    context.why = why;
    context.stub = number;
    context.flags = stub.flags.value(&|number| context.register(number), context.flags, context.host_flags);
    context.rip = context.code_base.wrapping_add(i64::from(stub.next) as u64);
    0
}

impl Machine {
    /// Does what a stub wants: where in the code it goes on then, or 0, and why code is to be left.
    fn at_stub(&mut self, context: &mut Context, number: u32, stub: &Stub) -> (u64, u32) {
        let again = |machine: &Self, place| (machine.cache.address(place) as u64, 0);
        let left = match stub.kind {
            Kind::Access { access, view, retry, unaligned } => {
                self.activity.set(work::ACCESSES);
                match unaligned.filter(|_| Self::is_merely_unaligned(context, &access, view)) {
                    Some(hole) if self.cache.let_be_unaligned(hole, &access) => return again(self, retry),
                    // To try again would not end.
                    Some(_) => Left::Crossing,
                    None => match self.know_page(context, &access, view) {
                        Ok(()) => return again(self, retry),
                        Err(left) => left,
                    },
                }
            }
            Kind::Group { access, stores, mode, retry, .. } => {
                self.activity.set(work::ACCESSES);
                let Err(left) = self.know_group(context, &access, stores, mode.view) else {
                    return again(self, retry);
                };
                if let Some(rest) = self.find_rest(context, number, stub, mode) {
                    return (rest as u64, 0);
                }
                left
            }
            Kind::Find { .. } | Kind::Link { .. } if context.alarm().has_rung() => {
                return (0, reason::ATTENTION);
            }
            Kind::Find { mode, retry } => {
                if self.find_jump(context, context.rax, mode).is_some_and(|target| target.in_table) {
                    return again(self, retry);
                }
                Left::Jump
            }
            Kind::Link { mode, retry, link, hole, distance, saved } => {
                self.stats.link_misses += 1;
                let linear = context.code_base.wrapping_add(i64::from(distance) as u64);
                if let Some(Target { code, page, .. }) = self.find_jump(context, linear, mode) {
                    self.cache.lead(hole, if saved { code } else { code - SAVED_ENTRY });
                    Jumps::link(context, link, mode.view, page, distance);
                    return again(self, retry);
                }
                Left::Jump
            }
            Kind::Interpret => return (0, reason::INTERPRET),
            Kind::Attention => return (0, reason::ATTENTION),
            Kind::Tie { .. } => return (0, reason::TIE),
        };
        self.stats.left(left);
        (0, reason::INTERPRET)
    }
}

/// Where translated code goes on after an exception of the host's at `at`.
///
/// # Safety
/// `machine` must be the one whose code was interrupted there.
unsafe fn recover(machine: *const (), at: usize) -> Option<usize> {
    // SAFETY: while its code runs no Rust code uses the machine.
    let machine = unsafe { &*machine.cast::<Machine>() };
    machine.signals.fetch_add(1, Ordering::Relaxed);
    machine.cache.recover(at)
}

impl Vcpu for Translator {
    fn run(&mut self) -> Result<Exit, Error> {
        Ok(self.on_guard(Self::run_here))
    }

    fn state(&self) -> State {
        self.machine().interpreter.state()
    }

    fn set_state(&mut self, state: &State) -> Result<(), Error> {
        self.parts().0.interpreter.set_state(state)
    }

    fn report(&self) -> Option<String> {
        Some(self.stats().to_string())
    }

    fn activity(&self) -> Option<Arc<Activity>> {
        Some(Arc::clone(&self.machine().activity))
    }
}

const SYS_ARCH_PRCTL: u64 = 158;
const ARCH_SET_GS: u64 = 0x1001;
const ARCH_GET_GS: u64 = 0x1004;

fn arch_prctl(code: u64, address: u64) {
    // SAFETY: arch_prctl(2) with these two codes changes `gs`, or the place that `address` points to; callers see
    // to both. `syscall` changes `rax`, `rcx` and `r11`.
    unsafe {
        asm!("syscall", inout("rax") SYS_ARCH_PRCTL => _, in("rdi") code, in("rsi") address,
            out("rcx") _, out("r11") _, options(nostack));
    }
}

fn gs_base() -> u64 {
    let mut base = 0_u64;
    arch_prctl(ARCH_GET_GS, &raw mut base as u64);
    base
}

/// # Safety
/// Nothing may rely on `gs` but translated code.
unsafe fn set_gs_base(base: u64) {
    arch_prctl(ARCH_SET_GS, base);
}
