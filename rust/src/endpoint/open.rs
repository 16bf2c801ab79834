//! Finds out what a descriptor of the caller's is, and makes an endpoint of it.

use std::os::fd::RawFd;

use libc::c_int;

use super::descriptor::{check, duplicate, flags_of, Descriptor};
use super::file::File;
use super::packet::{DeviceFile, Kind, Packets};
use super::stream::{EndOfFile, Sigpipe, Stream, Transport};
use super::vnet::VnetDevice;
use super::{system, Access, Endpoint};
use crate::error::OpenError;

/// See [`Endpoint::open`].
pub(super) fn open(fd: RawFd, access: Access) -> Result<Endpoint, OpenError> {
    let flags = flags_of(fd)?;
    // read(2) and write(2) fail with EBADF, too. Opening the file again would help, but the
    // owner of the descriptor may not be allowed to do that.
    if system::only_names(flags) {
        return Err(OpenError::System(libc::EBADF));
    }
    let mode = flags & libc::O_ACCMODE;
    let allows = |wanted| mode == wanted || mode == libc::O_RDWR;
    if access.reads() && !allows(libc::O_RDONLY) || access.writes() && !allows(libc::O_WRONLY) {
        return Err(OpenError::AccessMode);
    }
    match file_type(fd)? {
        libc::S_IFSOCK => open_socket(fd, flags),
        libc::S_IFIFO => {
            let end_of_file = match access.reads() {
                true => EndOfFile::Hidden,
                false => EndOfFile::Polled,
            };
            open_pipe_or_tty(fd, flags, end_of_file, sigpipe_of(access))
        }
        libc::S_IFCHR if is_tty(fd) => {
            open_pipe_or_tty(fd, flags, EndOfFile::Polled, sigpipe_of(access))
        }
        libc::S_IFCHR => match system::device(fd)? {
            Some(device) => open_device(fd, device),
            None => open_file(fd, FileType::Special),
        },
        libc::S_IFDIR => Err(OpenError::System(libc::EISDIR)),
        libc::S_IFREG => open_file(fd, FileType::Regular),
        _ => open_file(fd, FileType::Special),
    }
}

/// The file type bits of fstat(2).
fn file_type(fd: RawFd) -> Result<libc::mode_t, OpenError> {
    // SAFETY: `stat` is valid for the call, which only fills it in.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        check(libc::fstat(fd, &raw mut stat))?;
        Ok(stat.st_mode & libc::S_IFMT)
    }
}

fn is_tty(fd: RawFd) -> bool {
    // SAFETY: no memory is passed.
    unsafe { libc::isatty(fd) == 1 }
}

fn open_socket(fd: RawFd, flags: c_int) -> Result<Endpoint, OpenError> {
    let kind = match socket_option(fd, libc::SO_TYPE)? {
        libc::SOCK_STREAM => None,
        libc::SOCK_DGRAM => Some(system::datagrams(fd)),
        _ => return Err(OpenError::Unsupported),
    };
    if socket_option(fd, libc::SO_ACCEPTCONN)? != 0 {
        return Err(OpenError::System(libc::EINVAL));
    }
    let descriptor = Descriptor::socket(duplicate(fd)?, flags)?;
    Ok(match kind {
        Some(kind) => Endpoint::Packets(Packets::new(descriptor, Transport::Socket, kind)),
        None => Endpoint::Stream(Stream::socket(descriptor)),
    })
}

/// Opens a pipe, FIFO or tty again where that is possible, which gives a description of
/// our own, with `end_of_file`. Otherwise it borrows the caller's.
fn open_pipe_or_tty(
    fd: RawFd,
    flags: c_int,
    end_of_file: EndOfFile,
    sigpipe: Sigpipe,
) -> Result<Endpoint, OpenError> {
    let stream = match system::reopen(fd, flags)? {
        Some(fd) => Stream::pipe_or_tty(Descriptor::settled(fd), end_of_file, sigpipe),
        None => {
            let descriptor = Descriptor::borrowed(duplicate(fd)?)?;
            Stream::pipe_or_tty(descriptor, EndOfFile::Polled, sigpipe)
        }
    };
    Ok(Endpoint::Stream(stream))
}

fn open_device(fd: RawFd, device: DeviceFile) -> Result<Endpoint, OpenError> {
    let descriptor = Descriptor::borrowed(duplicate(fd)?)?;
    Ok(match device {
        DeviceFile::Packets(device) => Endpoint::Packets(Packets::new(
            descriptor,
            Transport::Other,
            Kind::Device(device),
        )),
        DeviceFile::Vnet(layout) => Endpoint::Vnet(VnetDevice::new(descriptor, layout)),
    })
}

/// The type of a file.
enum FileType {
    Regular,
    /// Any other file: a device, or one that the kernel makes up.
    Special,
}

fn open_file(fd: RawFd, file_type: FileType) -> Result<Endpoint, OpenError> {
    match file_type {
        // Some regular files can be polled: poll(2) tells when /proc/mounts has changed. They
        // are read like any other file.
        FileType::Regular => {}
        FileType::Special if system::is_pollable(fd)? => return Err(OpenError::Unsupported),
        FileType::Special => {}
    }
    Ok(Endpoint::File(File::new(Descriptor::settled(duplicate(
        fd,
    )?))))
}

/// The value of an option of SOL_SOCKET, see socket(7).
pub(super) fn socket_option(fd: RawFd, option: c_int) -> Result<c_int, OpenError> {
    let mut value: c_int = 0;
    let mut len = std::mem::size_of::<c_int>() as libc::socklen_t;
    // SAFETY: `value` and `len` are valid for the call and of the right size.
    let ret = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    check(ret).map(|_| value)
}

/// What SIGPIPE would do to this process, which has that access to a pipe. Node ignores the
/// signal; an embedder may not.
fn sigpipe_of(access: Access) -> Sigpipe {
    // SAFETY: `action` is valid for the call, which only fills it in.
    let kills = access.writes()
        && unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_DFL
        };
    match kills {
        true => Sigpipe::Kills,
        false => Sigpipe::Harmless,
    }
}
