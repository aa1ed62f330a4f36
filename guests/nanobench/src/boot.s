# From PVH's entry (32-bit protected mode, no paging; Xen's docs/misc/pvh.pandoc) to 64-bit mode, and the tables of a
# kernel that is as small as can be.

.section .note.pvh, "a"
    .long 4, 4, 18                  # name's and descriptor's size; XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_entry

.section .bss
.balign 4096
level4:     .skip 4096
level3:     .skip 4096
level2:     .skip 4096              # the first gigabyte, 2 MiB a page
level2_high: .skip 4096
.globl window
window:     .skip 4096              # page table of 2 MiB from 1 GiB: the tests' own
            .skip 16384
stack:
            .skip 4096
trap_stack:
            .skip 4096
user_stack:
idt:        .skip 4096
kernel_rsp: .skip 8

.section .data
.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        # 0x08: kernel code, 64 bits
    .quad 0x00cf93000000ffff        # 0x10: kernel data
    .quad 0x00cff3000000ffff        # 0x18: user data
    .quad 0x00affb000000ffff        # 0x20: user code, 64 bits
tss_descriptor:
    .quad 0, 0                      # 0x28: the task state segment
gdt_end:
gdtr: .word gdt_end - gdt - 1
      .quad gdt
idtr: .word 4095
      .quad idt
.balign 16
tss:
    .long 0
    .quad trap_stack                # RSP0
    .skip 92

.section .text
.code32
.globl pvh_entry
pvh_entry:
    cld
    mov esp, offset stack
    # Page tables: everything present, writable, and the user's too.
    mov eax, offset level3 + 7
    mov [level4], eax
    mov eax, offset level2 + 7
    mov [level3], eax
    mov eax, offset level2_high + 7
    mov [level3 + 8], eax
    mov eax, offset window + 7
    mov [level2_high], eax
    mov edi, offset level2
    mov eax, 0x87
    mov ecx, 512
1:  mov [edi], eax
    add eax, 0x200000
    add edi, 8
    dec ecx
    jnz 1b
    mov eax, offset level4
    mov cr3, eax
    mov eax, 0x620                  # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov ecx, 0xc0000080             # EFER: SCE, LME
    rdmsr
    or eax, 0x101
    wrmsr
    mov eax, 0x80010033             # PG, WP, NE, ET, MP, PE
    mov cr0, eax
    lgdt [gdtr]
    .byte 0xea                      # jmp 0x08:long_mode
    .long long_mode
    .word 0x08

.code64
long_mode:
    mov eax, 0x10
    mov ss, eax
    xor eax, eax
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov rsp, offset stack
    # The task state segment's descriptor.
    mov rax, offset tss
    mov rdx, 0x0000890000000067     # present, available, 104 bytes
    mov rcx, rax
    and ecx, 0xffffff
    shl rcx, 16
    or rdx, rcx
    mov [tss_descriptor], rdx
    mov eax, 0x28
    ltr ax
    # Gates: divide error, page fault, and the way back from user mode.
    mov rax, offset on_divide
    mov edi, offset idt
    mov ecx, 0x8e00
    call gate
    mov rax, offset on_page_fault
    mov edi, offset idt + 14 * 16
    call gate
    mov rax, offset on_return
    mov edi, offset idt + 0x80 * 16
    mov ecx, 0xee00
    call gate
    lidt [idtr]
    # System calls: STAR, LSTAR, FMASK.
    mov ecx, 0xc0000081
    xor eax, eax
    mov edx, 0x00130008
    wrmsr
    mov ecx, 0xc0000082
    mov eax, offset on_system_call
    xor edx, edx
    wrmsr
    mov ecx, 0xc0000084
    xor eax, eax
    wrmsr
    call main
1:  hlt
    jmp 1b

# A gate at rdi to rax, of the kind in cx.
gate:
    mov [rdi], ax
    mov word ptr [rdi + 2], 0x08
    mov [rdi + 4], cx
    shr rax, 16
    mov [rdi + 6], ax
    mov qword ptr [rdi + 8], 0
    ret

# Goes on behind the division, which is two bytes long.
on_divide:
    add qword ptr [rsp], 2
    iretq

# Makes the page present: its entry in the window's table is that of memory at 2 MiB.
on_page_fault:
    push rax
    mov rax, cr2
    shr rax, 12
    and eax, 511
    mov qword ptr [window + 8 * rax], 0x200007
    pop rax
    add rsp, 8
    iretq

on_system_call:
    sysretq

# Leaves user mode for good: goes on where user_system_calls was called.
on_return:
    mov rsp, [kernel_rsp]
    mov eax, 0x10
    mov ss, eax
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# The tests. Each takes in rdi how often.


.globl test_nothing
.balign 64
test_nothing:
1:  dec rdi
    jnz 1b
    ret

# Sixteen additions, each of which needs the one before.
.globl test_additions
.balign 64
test_additions:
1:
    .rept 16
    add rax, rdi
    .endr
    dec rdi
    jnz 1b
    ret

.globl test_call
.balign 64
test_call:
1:  call 2f
    dec rdi
    jnz 1b
2:  ret

.globl test_port
.balign 64
test_port:
    mov edx, 0x80
1:  in al, dx
    dec rdi
    jnz 1b
    ret

.globl test_cr8
.balign 64
test_cr8:
    xor eax, eax
1:  mov cr8, rax
    dec rdi
    jnz 1b
    ret

.globl test_divide
.balign 64
test_divide:
    xor ecx, ecx
1:  div ecx
    dec rdi
    jnz 1b
    ret

# Touches pages from 1 GiB on; at most 512.
.globl test_page_fault
.balign 64
test_page_fault:
    mov rsi, 0x40000000
1:  mov al, [rsi]
    add rsi, 4096
    dec rdi
    jnz 1b
    ret

.globl test_pte
.balign 64
test_pte:
    mov rax, 0x200007
1:  xor rax, 0x1000
    mov [window], rax
    dec rdi
    jnz 1b
    ret

.globl test_pte_invlpg
.balign 64
test_pte_invlpg:
    mov rax, 0x200007
    mov rsi, 0x40000000
1:  xor rax, 0x1000
    mov [window], rax
    invlpg [rsi]
    dec rdi
    jnz 1b
    ret

# Takes the pages of the window away.
.globl clear_window
clear_window:
    mov edi, offset window
    xor eax, eax
    mov ecx, 512
    rep stosq
    mov rax, cr3
    mov cr3, rax
    ret

# The loop runs in user mode.
.globl test_system_call
test_system_call:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [kernel_rsp], rsp
    mov rbx, rdi
    push 0x1b                       # SS, RSP, RFLAGS, CS, RIP
    push offset user_stack
    push 2
    push 0x23
    push offset in_user_mode
    iretq
.balign 64
in_user_mode:
1:  syscall
    dec rbx
    jnz 1b
    int 0x80

# What compiled code asks for.

.globl memcpy
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret

.globl memset
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

# Named by the core library, which was compiled for unwinding; nothing unwinds here.
.globl rust_eh_personality
rust_eh_personality:
    ud2
