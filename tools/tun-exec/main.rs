//! Opens a TUN or TAP device, or attaches to one, and becomes another program that
//! has it as an inherited file descriptor. Node has no ioctl(2) to do so itself.
//!
//! See Documentation/networking/tuntap.rst of Linux.

use std::env;
use std::ffi::{CStr, OsString};
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use libc::{c_int, c_short, c_uint, c_ulong};

const USAGE: &str = "\
usage: tun-exec [OPTION]... PROGRAM [ARGUMENT]...

Opens a TUN device and runs PROGRAM with it as file descriptor 3. The device is
new, and goes away with the last descriptor, or it is one that exists already
(ip tuntap add). It takes CAP_NET_ADMIN, or a device that belongs to the user.

  --name NAME    of the device; the kernel chooses one by default. NAME can have
                 a %d for a number that is free
  --tap          Ethernet frames instead of IP packets
  --pi           with the packet information header (no IFF_NO_PI)
  --queues N     N descriptors, from 3 on, of one multi-queue device
  --vnet-hdr     with the header of virtio (IFF_VNET_HDR)
  --offload      with that header, and with the offloads of the device: csum, tso4
                 and tso6, and uso4 and uso6 if the kernel has them (Linux 6.2).
                 Prints which these are, and sets TUN_OFFLOAD to the same words.
                 Without this option the device has none, also if it had some
  -h, --help     this text

PROGRAM finds the name of the device in TUN_NAME, the first descriptor in TUN_FD and
their number in TUN_QUEUES.

Exit status: that of PROGRAM; 1 if there is no such device to be had, 2 for wrong
options, 126 if PROGRAM cannot be run, 127 if it cannot be found.
";

/// Offloads of TCP: packets as they are before they are segmented, with checksums that are
/// not complete.
const TCP: c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

/// The same of UDP.
const UDP: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// All offloads, and those of a kernel that does not know all; with their names.
const OFFLOADS: [(c_uint, &str); 2] = [
    (TCP | UDP, "csum tso4 tso6 uso4 uso6"),
    (TCP, "csum tso4 tso6"),
];

const NO_OFFLOADS: [(c_uint, &str); 1] = [(0, "")];

/// The descriptor that the program gets first.
const FIRST_FD: RawFd = 3;

struct Options {
    name: Vec<u8>,
    flags: c_int,
    queues: RawFd,
    offload: bool,
    program: Vec<OsString>,
}

fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Option<Options>, String> {
    let mut options = Options {
        name: Vec::new(),
        flags: libc::IFF_TUN | libc::IFF_NO_PI,
        queues: 1,
        offload: false,
        program: Vec::new(),
    };
    while let Some(arg) = args.next() {
        let mut value = || {
            let text = args.next().and_then(|value| value.into_string().ok());
            text.ok_or_else(|| format!("{} takes a value", arg.to_string_lossy()))
        };
        match arg.to_str() {
            Some("-h" | "--help") => return Ok(None),
            Some("--tap") => options.flags = options.flags & !libc::IFF_TUN | libc::IFF_TAP,
            Some("--vnet-hdr") => options.flags |= libc::IFF_VNET_HDR,
            Some("--offload") => {
                options.flags |= libc::IFF_VNET_HDR;
                options.offload = true;
            }
            Some("--pi") => options.flags &= !libc::IFF_NO_PI,
            Some("--name") => options.name = value()?.into_bytes(),
            Some("--queues") => {
                options.queues = value()?.parse().map_err(|_| "--queues takes a number")?;
                options.flags |= libc::IFF_MULTI_QUEUE;
            }
            Some("--") => options.program.extend(args.by_ref()),
            Some(text) if text.starts_with('-') => return Err(format!("unknown option {text}")),
            _ => {
                options.program.push(arg);
                options.program.extend(args.by_ref());
            }
        }
    }
    if options.name.len() >= libc::IFNAMSIZ {
        return Err(format!("--name takes at most {} bytes", libc::IFNAMSIZ - 1));
    }
    if !(1..=256).contains(&options.queues) {
        return Err("--queues takes a number from 1 to 256".into());
    }
    if options.program.is_empty() {
        return Err("no program to run".into());
    }
    Ok(Some(options))
}

/// Opens one queue of the device, and puts its name in place of the pattern.
fn open(request: &mut libc::ifreq) -> Result<RawFd, String> {
    // SAFETY: the path is NUL-terminated.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return Err(format!("cannot open /dev/net/tun: {error}"));
    }
    // SAFETY: `request` is valid for the call, which fills the name in.
    if unsafe { libc::ioctl(fd, libc::TUNSETIFF as _, &raw mut *request) } < 0 {
        let error = io::Error::last_os_error();
        return Err(format!("cannot have the device: {error}"));
    }
    Ok(fd)
}

/// Sets the offloads of the device to the first of `choices` that the kernel takes. A kernel
/// that does not know one offload of several sets none. Returns the names of the offloads.
fn set_offloads(fd: RawFd, choices: &[(c_uint, &'static str)]) -> Result<&'static str, String> {
    for &(offloads, names) in choices {
        // SAFETY: no memory is passed.
        let set = unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD as _, c_ulong::from(offloads)) };
        if set == 0 {
            return Ok(names);
        }
    }
    let error = io::Error::last_os_error();
    Err(format!("cannot set the offloads of the device: {error}"))
}

/// Makes `fd` number `wanted`, which the program inherits.
fn pass_on(fd: RawFd, wanted: RawFd) -> Result<(), String> {
    // SAFETY: no memory is passed. What had the number before is not used by this
    // program any more.
    let done = unsafe {
        if fd == wanted {
            libc::fcntl(fd, libc::F_SETFD, 0)
        } else {
            libc::dup2(fd, wanted)
        }
    };
    if done < 0 {
        return Err(io::Error::last_os_error().to_string());
    }
    Ok(())
}

/// Opens the device and makes the command that is to have it.
fn prepare(options: &Options) -> Result<Command, String> {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(&options.name) {
        *to = *from as _;
    }
    request.ifr_ifru.ifru_flags = options.flags as c_short;
    let mut queues = Vec::new();
    for _ in 0..options.queues {
        queues.push(open(&mut request)?);
    }
    // A device that exists already has the offloads that were set before.
    let choices = match options.offload {
        true => &OFFLOADS[..],
        false => &NO_OFFLOADS[..],
    };
    let offloads = set_offloads(queues[0], choices)?;
    // None of those that are still to move may be where another one goes.
    let above = FIRST_FD + options.queues;
    for queue in &mut queues {
        // SAFETY: no memory is passed.
        *queue = match unsafe { libc::fcntl(*queue, libc::F_DUPFD_CLOEXEC, above) } {
            -1 => return Err(io::Error::last_os_error().to_string()),
            fd => fd,
        };
    }
    for (queue, wanted) in queues.into_iter().zip(FIRST_FD..) {
        pass_on(queue, wanted)?;
    }
    // SAFETY: the kernel has terminated the name.
    let name = unsafe { CStr::from_ptr(request.ifr_name.as_ptr()) };
    let mut command = Command::new(&options.program[0]);
    command.args(&options.program[1..]);
    command.env("TUN_FD", FIRST_FD.to_string());
    command.env("TUN_QUEUES", options.queues.to_string());
    let name = name.to_string_lossy();
    command.env("TUN_NAME", name.as_ref());
    if offloads.is_empty() {
        // There may be one of another device.
        command.env_remove("TUN_OFFLOAD");
    } else {
        command.env("TUN_OFFLOAD", offloads);
        // If that cannot be written, the program still has it.
        let _ = writeln!(io::stderr(), "tun-exec: {name} has {offloads}");
    }
    Ok(command)
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn fail(code: u8, error: impl Display) -> ExitCode {
    // If not even that can be written, there is nobody to tell.
    let _ = writeln!(io::stderr(), "tun-exec: {error}");
    ExitCode::from(code)
}

fn main() -> ExitCode {
    let options = match parse(env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            return match print(USAGE) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(1, error),
            }
        }
        Err(error) => return fail(2, format!("{error}\n{USAGE}")),
    };
    let mut command = match prepare(&options) {
        Ok(command) => command,
        Err(error) => return fail(1, error),
    };
    // It returns only to fail.
    let error = command.exec();
    let code = match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    };
    let name = options.program[0].to_string_lossy();
    fail(code, format!("cannot run {name}: {error}"))
}
