//! The guest that the probe runs: a countdown in 64-bit kernel mode, as the kernels of real guests run. Pure.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

/// Code and three levels of page tables, a page each.
pub(super) const MEMORY_SIZE: usize = 4 * PAGE;
/// The port it writes to when it is done; on a PC, a place for debugging output.
pub(super) const PORT: u8 = 0x80;

const PAGE: usize = 0x1000;
const CODE: [u8; 8] = [
    0x48, 0xff, 0xc9, // loop: dec rcx
    0x75, 0xfb, //             jnz loop
    0xe6, PORT, //             out PORT, al
    0xf4, //                   hlt
];

/// Writes code and page tables: the first 2 MiB mapped to themselves.
pub(super) fn load(memory: &mut [u8]) {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 1 << 7;
    memory[..CODE.len()].copy_from_slice(&CODE);
    let (pml4, pdpt, pd) = (PAGE, 2 * PAGE, 3 * PAGE);
    for (table, entry) in [
        (pml4, pdpt as u64 | PRESENT_WRITABLE),
        (pdpt, pd as u64 | PRESENT_WRITABLE),
        (pd, PRESENT_WRITABLE | LARGE_PAGE),
    ] {
        memory[table..table + 8].copy_from_slice(&entry.to_le_bytes());
    }
}

/// Sets what a processor needs to run 64-bit code; bits as in the manuals of its makers.
pub(super) fn enter_long_mode(sregs: &mut kvm_sregs) {
    const PE_MP_ET_NE_WP_AM_PG: u64 = 0x8005_0033;
    const PAE: u64 = 1 << 5;
    const LME_LMA: u64 = 1 << 8 | 1 << 10;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 8,
        type_: 0b1011,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 16, type_: 0b0011, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = PAGE as u64;
    sregs.cr4 = PAE;
    sregs.cr0 = PE_MP_ET_NE_WP_AM_PG;
    sregs.efer = LME_LMA;
}

/// At the start, with so many iterations before it.
pub(super) fn regs(iterations: u64) -> kvm_regs {
    // Bit 1 is always set.
    kvm_regs { rcx: iterations, rflags: 1 << 1, ..Default::default() }
}
