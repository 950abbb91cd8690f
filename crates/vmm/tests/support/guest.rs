//! The smallest guest: an init of a few instructions, as a static ELF program, and the kernel to run it.

use std::path::{Path, PathBuf};

/// What the guest prints.
pub(crate) const GREETING: &str = "manta test guest: hello\n";

/// Letters of a printed count: digits of base 16, from `a`.
pub(crate) const COUNT: usize = 4;

/// What it does then.
pub(crate) enum Then {
    /// Waits for ever.
    Wait,
    /// Counts, once in about 10 ms, in more and more memory: turn n writes n to its n-th page, ends if a page
    /// before does not hold its own number, and prints n as [`COUNT`] letters and a newline. For a minute at
    /// least.
    Count,
    /// Sends back what comes in by the agent's port; looks for it without a pause when nobody is connected.
    Echo,
    /// Ends, which is the death of a kernel's first process.
    Exit,
}

/// An init for x86-64 Linux.
pub(crate) fn init(then: Then) -> Vec<u8> {
    const HEADERS: usize = 0x40 + 56;
    const BASE: u64 = 0x40_0000;
    /// Of the pages that are counted in.
    const TABLE: u32 = 0x100_0000;
    const TABLE_SIZE: u64 = 64 << 20;
    let [t0, t1, t2, t3] = TABLE.to_le_bytes();
    let end: &[u8] = match then {
        Then::Wait => &[
            0xb8, 34, 0, 0, 0, // mov eax, pause
            0x0f, 0x05, // syscall
            0xeb, 0xf7, // jmp to the start of this
        ],
        Then::Count => &[
            0x45,
            0x31,
            0xe4, // xor r12d, r12d
            0x41,
            0xff,
            0xc4, // turn: inc r12d
            0x44,
            0x89,
            0xe0, // mov eax, r12d
            0xc1,
            0xe0,
            12, // shl eax, 12
            0x44,
            0x89,
            0xa0,
            t0,
            t1,
            t2,
            t3, // mov [rax + TABLE], r12d
            0x44,
            0x89,
            0xe1, // mov ecx, r12d
            0x89,
            0xc8, // page: mov eax, ecx
            0xc1,
            0xe0,
            12, // shl eax, 12
            0x39,
            0x88,
            t0,
            t1,
            t2,
            t3, // cmp [rax + TABLE], ecx
            0x75,
            76, // jne bad
            0xff,
            0xc9, // dec ecx
            0x75,
            0xef, // jnz page
            0x48,
            0x8d,
            0x74,
            0x24,
            0xf0, // lea rsi, [rsp - 16]
            0xb9,
            COUNT as u8,
            0,
            0,
            0, // mov ecx, COUNT
            0x44,
            0x89,
            0xe2, // mov edx, r12d
            0x89,
            0xd0, // letter: mov eax, edx
            0x83,
            0xe0,
            15, // and eax, 15
            0x04,
            b'a', // add al, 'a'
            0x88,
            0x44,
            0x0e,
            0xff, // mov [rsi + rcx - 1], al
            0xc1,
            0xea,
            4, // shr edx, 4
            0xff,
            0xc9, // dec ecx
            0x75,
            0xee, // jnz letter
            0xc6,
            0x46,
            COUNT as u8,
            b'\n', // mov byte [rsi + COUNT], '\n'
            0xb8,
            1,
            0,
            0,
            0, // mov eax, write
            0x89,
            0xc7, // mov edi, eax (stdout)
            0xba,
            COUNT as u8 + 1,
            0,
            0,
            0, // mov edx, COUNT + 1
            0x0f,
            0x05, // syscall
            0x68,
            0x80,
            0x96,
            0x98,
            0, // push 10000000 (nanoseconds)
            0x6a,
            0, // push 0 (seconds)
            0x48,
            0x89,
            0xe7, // mov rdi, rsp
            0x31,
            0xf6, // xor esi, esi
            0xb8,
            35,
            0,
            0,
            0, // mov eax, nanosleep
            0x0f,
            0x05, // syscall
            0x58,
            0x58, // pop rax; pop rax
            0xeb,
            0x94, // jmp turn
            0xb8,
            60,
            0,
            0,
            0, // bad: mov eax, exit
            0x0f,
            0x05, // syscall
        ],
        Then::Echo => ECHO,
        Then::Exit => &[
            0xb8, 60, 0, 0, 0, // mov eax, exit
            0x31, 0xff, // xor edi, edi
            0x0f, 0x05, // syscall
        ],
    };
    let mut code = vec![0xb8, 1, 0, 0, 0]; // mov eax, write
    code.extend([0xbf, 1, 0, 0, 0]); // mov edi, stdout
    code.push(0xba); // mov edx, length
    code.extend((GREETING.len() as u32).to_le_bytes());
    code.extend([0x48, 0x8d, 0x35]); // lea rsi, [rip + what is between here and the greeting]
    code.extend((2 + end.len() as u32).to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend(end);
    code.extend(GREETING.as_bytes());

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let length = (HEADERS + code.len()) as u64;
    let half = |elf: &mut Vec<u8>, numbers: &[u16]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, numbers: &[u32]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    let long = |elf: &mut Vec<u8>, numbers: &[u64]| numbers.iter().for_each(|n| elf.extend(n.to_le_bytes()));
    half(&mut elf, &[2, 62]); // executable, x86-64
    word(&mut elf, &[1]);
    long(&mut elf, &[BASE + HEADERS as u64, 0x40, 0]); // entry, program headers, no section headers
    word(&mut elf, &[0]);
    half(&mut elf, &[0x40, 56, 1, 0, 0, 0]);
    word(&mut elf, &[1, 7]); // one segment: load, read, write and execute
    let size = u64::from(TABLE) - BASE + TABLE_SIZE;
    long(&mut elf, &[0, BASE, BASE, length, size, 0x1000]);
    elf.extend(code);
    elf
}

/// ```text
///         mkdir("/d"); mount("/d", "/d", "devtmpfs")
/// open:   ebx = open("/d/vport0p1", O_RDWR)
///         if it failed: the next of the digits 0 to 7 instead of the first, and back to open
/// echo:   n = read(ebx, rsp - 4096, 4096)
///         if n <= 0: back to echo
///         write(ebx, rsp - 4096, n); back to echo
/// ```
#[rustfmt::skip]
const ECHO: &[u8] = &[
    0xb8, 0x53, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x3d, 0x73, 0x00, 0x00, 0x00, 0xbe, 0xc0, 0x01, 0x00, 0x00, 0x0f,
    0x05, 0xb8, 0xa5, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x35, 0x60, 0x00, 0x00, 0x00, 0x48, 0x89, 0xf7, 0x48, 0x8d,
    0x15, 0x59, 0x00, 0x00, 0x00, 0x45, 0x31, 0xd2, 0x45, 0x31, 0xc0, 0x0f, 0x05, 0xb8, 0x02, 0x00, 0x00, 0x00,
    0x48, 0x8d, 0x3d, 0x4e, 0x00, 0x00, 0x00, 0xbe, 0x02, 0x00, 0x00, 0x00, 0x0f, 0x05, 0x85, 0xc0, 0x79, 0x0f,
    0xfe, 0x05, 0x45, 0x00, 0x00, 0x00, 0x80, 0x25, 0x3e, 0x00, 0x00, 0x00, 0x37, 0xeb, 0xda, 0x89, 0xc3, 0x48,
    0x81, 0xec, 0x00, 0x10, 0x00, 0x00, 0x31, 0xc0, 0x89, 0xdf, 0x48, 0x89, 0xe6, 0xba, 0x00, 0x10, 0x00, 0x00,
    0x0f, 0x05, 0x85, 0xc0, 0x7e, 0xee, 0x89, 0xc2, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x89, 0xdf, 0x0f, 0x05, 0xeb,
    0xe1, 0x2f, 0x64, 0x00, 0x64, 0x65, 0x76, 0x74, 0x6d, 0x70, 0x66, 0x73, 0x00, 0x2f, 0x64, 0x2f, 0x76, 0x70,
    0x6f, 0x72, 0x74, 0x30, 0x70, 0x31, 0x00,
];

/// The guest kernel: `MANTA_KERNEL_PATH`, which must exist if set, or what the image build has made.
pub(crate) fn kernel() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MANTA_KERNEL_PATH") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "MANTA_KERNEL_PATH={} is no file", path.display());
        return Some(path);
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-artifacts/vmlinux");
    if built.is_file() {
        return Some(built);
    }
    println!("skipped: no guest kernel (neither MANTA_KERNEL_PATH nor guest-artifacts/vmlinux)");
    None
}
