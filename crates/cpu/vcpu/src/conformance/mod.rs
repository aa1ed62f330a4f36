//! The conformance suite: what every engine must do alike.
//!
//! Each case is a small guest, assembled here, with matchers on how it ends: the exit, the state, the exception
//! frame, memory, and what reached the bus. Cases know an engine only as [`Vcpu`]. They cover what a program
//! cannot be compared natively for: privileges, modes, faults, interrupts; unprivileged instructions have the
//! host as their oracle instead.
//!
//! An engine's own tests hold one line, which makes a `#[test]` of every case:
//!
//! ```ignore
//! posada_vcpu::conformance_tests!(|connections| Box::new(MyEngine::new(connections)));
//! ```

// An assembler's program reads as one when its registers need no names in front, and all its lines look alike.
#![allow(clippy::wildcard_imports, clippy::redundant_closure_for_method_calls)]

mod board;
mod machine;
mod tables;

use crate::{Connections, Vcpu};

/// Makes an engine's virtual CPU.
pub type Engine = dyn Fn(Connections) -> Box<dyn Vcpu>;

/// One behaviour.
#[derive(Clone, Copy)]
pub struct Case {
    /// Theme and name.
    pub name: &'static str,
    run: fn(&Engine),
}

impl Case {
    /// Panics when the engine does not behave so.
    pub fn run(&self, engine: &Engine) {
        (self.run)(engine);
    }
}

/// Runs the case of that name.
pub fn run(name: &str, engine: &Engine) {
    let case = CASES.iter().find(|case| case.name == name);
    case.unwrap_or_else(|| panic!("no case is called {name}")).run(engine);
}

macro_rules! suite {
    ($dollar:tt $($theme:ident { $($case:ident)* })*) => {
        $(mod $theme;)*

        /// Every case.
        pub const CASES: &[Case] = &[
            $($(Case { name: concat!(stringify!($theme), "::", stringify!($case)), run: $theme::$case },)*)*
        ];

        /// Makes a `#[test]` of every case, for the engine that the given function makes.
        #[macro_export]
        macro_rules! conformance_tests {
            ($dollar factory:expr) => {
                $(mod $theme {
                    $(#[test]
                    fn $case() {
                        $crate::conformance::run(
                            concat!(stringify!($theme), "::", stringify!($case)),
                            &$dollar factory,
                        );
                    })*
                })*
            };
        }
    };
}

suite! { $
    paging {
        pages_of_4_kib_are_translated
        large_pages_are_translated
        pages_of_1_gib_are_translated
        page_faults_tell_what_was_tried_and_where
        read_only_pages_hold_for_the_kernel_if_write_protect_is_set
        read_only_pages_always_hold_for_programs
        rights_are_those_that_every_level_grants
        no_execute_pages_fault_when_fetched_from
        the_no_execute_bit_is_reserved_unless_enabled
        reserved_bits_fault
        smep_keeps_the_kernel_from_running_the_users_pages
        smap_keeps_the_kernel_from_the_users_data
        stac_and_clac_open_and_close_the_users_data
        a_read_sets_accessed_bits_on_every_level
        a_write_sets_the_dirty_bit_of_the_last_level
        a_refused_write_leaves_the_dirty_bit_clear
        a_changed_entry_counts_after_invlpg
        a_changed_entry_counts_after_a_load_of_cr3
        a_changed_global_entry_counts_after_a_change_of_pge
        a_changed_global_entry_counts_after_invlpg
        invlpg_of_a_large_page_drops_all_of_it
        an_entry_made_present_counts_without_a_flush
        a_store_across_pages_changes_both_or_neither
        an_instruction_across_pages_is_fetched_from_both
        process_contexts_keep_their_translations_apart
        invpcid_drops_one_address_of_a_context
        addresses_that_are_not_canonical_fault_without_paging_being_asked
        reserved_bits_of_pae_pointers_fault_when_cr3_is_loaded
        a_change_of_write_protect_counts_at_once
    }
    modes {
        real_mode_enters_protected_mode_and_returns
        limits_outlive_protected_mode
        protected_mode_enters_long_mode
        long_mode_is_left_through_compatibility_mode
        compatibility_mode_and_64_bit_mode_change_by_far_transfers
        compatibility_mode_cuts_addresses_to_32_bits
        impossible_values_of_cr0_fault
        long_mode_needs_pae
        paging_cannot_be_left_from_64_bit_mode
        impossible_values_of_cr4_fault
        reserved_bits_of_cr3_fault_in_long_mode
        efer_keeps_long_mode_while_paging
        control_registers_that_do_not_exist_are_invalid
        operand_and_address_sizes_follow_the_code_segment
        enabling_paging_counts_for_the_next_instruction
        smsw_and_lmsw_reach_the_low_bits_of_cr0
        the_whole_state_survives_a_round_trip
    }
    segments {
        a_load_takes_base_limit_and_rights_from_the_table
        page_granularity_multiplies_the_limit
        loads_that_the_descriptor_does_not_allow_fault
        selectors_beyond_the_table_fault
        programs_may_not_load_the_kernels_data
        the_stack_segment_must_match_the_privilege_level
        a_null_selector_may_be_loaded_but_not_used
        in_64_bit_mode_a_null_selector_is_as_good_as_any
        accesses_are_held_to_the_limit
        flat_segments_do_not_wrap_around
        expand_down_segments_are_valid_above_their_limit
        segments_that_cannot_be_written_are_not
        the_stack_segments_limit_raises_stack_faults
        code_ends_at_its_segments_limit
        sixteen_bit_stacks_wrap_and_keep_the_upper_half
        the_base_is_added_to_offsets
        only_fs_and_gs_have_bases_in_64_bit_mode
        lgdt_and_sgdt_move_the_tables_register
        lldt_loads_a_local_table
        ltr_takes_an_available_task_and_marks_it_busy
        system_descriptors_of_long_mode_have_64_bit_bases
        lar_lsl_verr_and_verw_look_without_faulting
        real_mode_loads_give_the_selector_times_16
        real_mode_keeps_a_limit_of_64_kib
    }
    exceptions {
        faults_name_the_instruction_that_faults
        invalid_opcodes_fault
        breakpoints_and_overflow_are_traps
        bound_faults_outside_its_bounds
        software_interrupts_obey_the_gates_privilege_level
        hardware_exceptions_ignore_the_gates_privilege_level
        gates_that_are_missing_fault
        gates_must_lead_to_code
        interrupt_gates_clear_if_and_trap_gates_keep_it
        frames_of_64_bit_mode_always_hold_the_stack_and_are_aligned
        a_change_of_privilege_switches_to_the_stack_of_the_task
        the_interrupt_stack_table_gives_a_handler_its_own_stack
        gates_of_16_bits_push_words
        a_conforming_handler_keeps_the_privilege_level
        a_fault_in_delivery_of_a_contributory_one_is_a_double_fault
        a_page_fault_in_delivery_of_a_page_fault_is_a_double_fault
        a_fault_in_delivery_of_a_benign_one_is_delivered_instead
        a_page_fault_in_delivery_of_a_contributory_one_is_delivered_instead
        a_third_fault_shuts_the_processor_down
        real_mode_interrupts_go_through_the_vector_table
        real_mode_exceptions_have_no_error_code
        a_vector_beyond_the_real_mode_table_is_a_double_fault
        the_real_mode_table_may_be_anywhere
        instructions_over_15_bytes_fault
        lock_is_invalid_where_nothing_can_be_locked
        pushes_that_fault_leave_the_stack_pointer
        idt_reads_that_page_fault_are_double_faults
    }
    gates {
        far_jumps_and_calls_load_the_code_segment
        far_transfers_check_their_target
        programs_reach_the_kernels_code_only_if_it_conforms
        far_returns_go_back
        far_returns_to_programs_take_their_stack_and_drop_the_kernels_data
        far_returns_never_go_inwards
        call_gates_lead_to_the_same_level
        call_gates_lead_inwards_and_copy_parameters
        far_returns_with_parameters_release_them_on_both_stacks
        jumps_never_go_inwards_through_a_gate
        call_gates_check_privileges
        sixteen_bit_call_gates_push_words
        call_gates_of_long_mode_enter_64_bit_code
        call_gates_of_long_mode_must_lead_to_64_bit_code
        far_pointers_in_memory_work_in_64_bit_mode
        direct_far_transfers_are_invalid_in_64_bit_mode
        real_mode_far_calls_push_words
    }
    iret {
        iret_returns_to_the_same_level
        iret_of_64_bit_mode_always_takes_a_stack
        iret_returns_to_programs
        iret_clears_data_segments_that_a_program_may_not_have
        iret_lets_privileged_flags_be_changed_by_the_privileged_only
        iret_checks_what_it_returns_to
        iret_to_an_address_that_is_not_canonical_faults
        nested_tasks_are_no_part_of_long_mode
        iret_from_compatibility_mode_returns_to_64_bit_code
        real_mode_iret_pops_words
    }
    tasks {
        a_jump_switches_tasks
        a_call_nests_a_task_and_iret_returns_from_it
        a_busy_task_cannot_be_switched_to
        a_task_segment_must_be_present_and_large_enough
        a_task_gate_leads_to_a_task
        an_exception_may_be_a_tasks
        a_double_fault_on_a_broken_stack_is_saved_by_its_task
        the_new_tasks_segments_are_checked_in_the_new_task
        a_tasks_debug_trap_stops_it_at_its_first_instruction
        a_task_brings_its_page_tables
        long_mode_has_no_task_switches
    }
    v8086 {
        iret_with_vm_set_enters_virtual_8086_mode
        interrupts_leave_it_with_all_segments_on_the_stack
        segments_are_numbers
        pushf_in_vm86_with_iopl_below_3_faults
        popf_in_vm86_with_iopl_below_3_faults
        cli_and_sti_in_vm86_with_iopl_below_3_fault
        software_interrupts_in_vm86_with_iopl_below_3_fault
        iret_in_vm86_with_iopl_below_3_faults
        sensitive_instructions_work_at_iopl_3
        breakpoints_need_no_iopl
        ports_are_the_bitmaps_whatever_the_iopl
        instructions_that_need_descriptors_are_invalid
        privileged_instructions_fault
        programs_cannot_set_vm
    }
    syscalls {
        syscall_enters_64_bit_code
        syscall_from_compatibility_mode_has_its_own_target
        sysret_returns_to_64_bit_and_32_bit_programs
        syscall_outside_64_bit_mode_is_the_legacy_one
        syscall_and_sysret_are_invalid_until_enabled
        sysret_is_for_the_kernel
        sysenter_enters_the_kernel_of_protected_mode
        sysexit_returns_to_a_program
        sysenter_needs_a_code_selector
        sysenter_and_sysexit_are_invalid_in_long_mode
        swapgs_exchanges_the_bases_of_gs
        programs_reach_fs_and_gs_bases_if_allowed
        base_registers_must_be_canonical
        a_load_of_fs_in_64_bit_mode_takes_the_base_from_the_table
    }
    interrupts {
        a_pending_interrupt_is_delivered_before_the_next_instruction
        a_clear_interrupt_flag_holds_interrupts_off
        sti_lets_one_more_instruction_through
        sti_has_no_shadow_when_interrupts_were_enabled
        cli_in_the_shadow_of_sti_wins
        popf_lets_interrupts_in_at_once
        a_load_of_ss_lets_one_more_instruction_through
        pop_ss_holds_interrupts_off_too
        hlt_waits_for_an_interrupt
        sti_and_hlt_do_not_miss_an_interrupt
        iret_ends_a_handler_and_lets_the_next_interrupt_in
        nmi_comes_through_whatever_the_interrupt_flag
        nmi_waits_for_iret
        nmi_wakes_a_halted_processor
        nmi_goes_before_a_maskable_interrupt
        a_kick_ends_an_endless_loop
        an_interrupt_gets_into_a_tight_loop
        repeated_string_instructions_are_interrupted_between_repetitions
        interrupts_take_a_program_to_the_kernels_stack
        external_interrupts_ignore_the_gates_privilege_level
        an_external_interrupt_without_a_gate_is_a_fault_from_outside
        cr8_is_the_task_priority
        init_brings_the_reset_state_but_keeps_memory
    }
    debug {
        single_stepping_traps_after_each_instruction
        popf_that_sets_tf_traps_after_the_next_instruction
        popf_that_clears_tf_still_traps
        a_faulting_instruction_is_not_trapped
        a_software_interrupt_is_stepped_over
        a_load_of_ss_holds_the_trap_off
        repeated_string_instructions_trap_after_each_repetition
        instruction_breakpoints_fault_before_the_instruction
        the_resume_flag_lets_one_instruction_pass_its_breakpoint
        data_breakpoints_trap_behind_the_access
        data_breakpoints_see_unaligned_and_implicit_accesses
        port_breakpoints_need_debugging_extensions
        guarded_debug_registers_fault
        debug_registers_4_and_5_are_6_and_7_without_debugging_extensions
        programs_may_not_touch_debug_registers
        the_upper_halves_of_debug_status_and_control_stay_clear
        writing_debug_registers_arms_them_at_once
        the_one_byte_interrupt_of_a_debugger_is_a_trap
        int3_from_a_program_needs_a_gate_for_programs
        iret_restores_tf_and_steps_the_instruction_it_returns_to
    }
    protection {
        privileged_instructions_fault_in_programs
        interrupt_flag_instructions_obey_iopl
        popf_in_a_program_changes_neither_if_nor_iopl
        alignment_is_checked_in_programs_that_ask_for_it
        umip_hides_the_tables_from_programs
        the_time_stamp_counter_can_be_withheld
        model_specific_registers_that_do_not_exist_fault
        model_specific_registers_keep_what_is_written
        cpuid_answers_leaf_0_and_the_brand
        the_x87_unit_is_unavailable_while_a_task_switch_is_pending
        sse_is_invalid_until_enabled
        unmasked_sse_exceptions_are_invalid_opcodes_without_operating_system_support
        unmasked_x87_exceptions_come_with_the_next_instruction
        xsetbv_and_xgetbv_need_cr4
        ports_need_iopl_or_the_bitmap
        repeated_string_instructions_fault_in_the_middle
        repeated_string_instructions_go_on_after_a_fault
        a_compare_and_exchange_of_16_bytes_wants_alignment
        aligned_sse_operands_want_alignment
        locked_instructions_work_on_devices
    }
    devices {
        ports_are_read_and_written_in_three_sizes
        string_instructions_move_between_ports_and_memory
        a_string_input_that_cannot_be_stored_does_not_read_the_port
        device_memory_is_read_and_written_in_four_sizes
        instructions_that_read_and_write_do_each_once
        string_instructions_reach_devices
        ram_and_devices_can_be_neighbours
        sixteen_byte_accesses_reach_devices
        stacks_may_lie_in_device_memory
        code_may_lie_in_device_memory
        addresses_without_ram_read_as_ones_without_paging_too
    }
    code {
        a_store_into_the_next_instruction_counts
        a_store_into_an_instruction_that_has_run_counts
        a_store_into_another_page_of_code_counts
        a_store_through_another_mapping_of_the_page_counts
        every_kind_of_store_counts
        a_store_by_a_device_counts
        code_across_two_pages_may_change_on_either
        code_across_two_pages_follows_the_mapping_of_the_second
        a_page_mapped_elsewhere_brings_other_code
        the_same_bytes_are_other_code_in_another_mode
    }
    processors {
        locked_instructions_of_several_processors_add_up
        a_lock_taken_by_exchange_keeps_others_out
        fences_order_stores_before_loads
        interrupts_go_back_and_forth
        a_start_up_message_starts_a_processor
        a_page_taken_away_is_not_written_to_any_more
        code_that_another_processor_changes_is_seen_in_a_loop
        code_that_another_processor_changes_is_seen_after_a_serializing_instruction
        a_loop_within_a_page_that_another_processor_changes_is_left
        a_page_that_another_processor_writes_to_becomes_code
        every_processor_may_change_what_all_run
    }
}
