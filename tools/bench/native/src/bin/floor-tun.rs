//! The floor for packets: about the least that a TLS terminator can do in user space between OpenSSL
//! and a TUN device. One connection at a time, of which both directions are forwarded.
//!
//! Decryption reads much ciphertext at once, and writes each packet from where OpenSSL has put it.
//! Encryption reads the packets that are there, up to a limit, side by side; OpenSSL makes records
//! of up to 16 KiB of them, which are sent with one call.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use tls_splice_bench::args::Args;
use tls_splice_bench::sys::{self, Endpoint, Ends, Epoll};
use tls_splice_bench::tls::{self, Read, Tls};

const MAX_RECORD: usize = 16 << 10;
/// The longest packet: IPv6, with 16 bits for the length of what follows the header.
const MAX_PACKET: usize = 40 + 65535;

/// A buffer, and how much of it is filled.
struct Buffer {
    bytes: Vec<u8>,
    len: usize,
}

impl Buffer {
    fn new(size: usize) -> Self {
        Buffer {
            bytes: vec![0; size],
            len: 0,
        }
    }
}

struct Tunnel<'a> {
    tls: Tls,
    tun: &'a Ends,
    tun_drained: bool,
    decrypted: Buffer,
    /// Bytes for one turn.
    limits: [usize; 2],
    packets: Buffer,
}

/// Of the packet at the start of `bytes`, if so much of it is there that it is known.
fn packet_len(bytes: &[u8]) -> Option<usize> {
    let field = |i| usize::from(u16::from_be_bytes([bytes[i], bytes[i + 1]]));
    match bytes.first()? >> 4 {
        _ if bytes.len() < 6 => None,
        4 => Some(field(2)),
        _ => Some(40 + field(4)),
    }
}

impl Tunnel<'_> {
    /// Whether there may be more.
    fn decrypt(&mut self) -> io::Result<bool> {
        let Buffer { bytes, len } = &mut self.decrypted;
        let mut turn = 0;
        while turn < self.limits[0] {
            match self.tls.read(&mut bytes[*len..])? {
                Read::Bytes(n) => {
                    *len += n;
                    turn += n;
                }
                Read::Blocked => return Ok(false),
                Read::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
            let mut at = 0;
            while let Some(end) = packet_len(&bytes[at..*len]).map(|n| at + n) {
                if end > *len {
                    break;
                }
                sys::write(self.tun.sink(), &bytes[at..end])?;
                at = end;
            }
            bytes.copy_within(at..*len, 0);
            *len -= at;
        }
        Ok(true)
    }

    /// Whether there may be more.
    fn encrypt(&mut self) -> io::Result<bool> {
        if !self.tls.flush()? || self.tun_drained {
            return Ok(false);
        }
        let Buffer { bytes, len } = &mut self.packets;
        *len = 0;
        while *len < self.limits[1] {
            match sys::read(self.tun.source(), &mut bytes[*len..*len + MAX_PACKET])? {
                Some(n) => *len += n,
                None => {
                    self.tun_drained = true;
                    break;
                }
            }
        }
        if *len > 0 {
            self.tls.write(&bytes[..*len])?;
        }
        Ok(self.tls.flush()? && !self.tun_drained)
    }
}

/// Until the peer ends.
fn serve(args: &Args, mut tls: Tls, tun: &Ends) -> io::Result<()> {
    let decrypt_size = args.get("--decrypt").unwrap_or(64 << 10);
    let encrypt_size = args.get("--encrypt").unwrap_or(256 << 10);
    let mut epoll = Epoll::new()?;
    let (tls_token, tun_token) = (0, 1);
    epoll.add(tls.fd(), tls_token)?;
    epoll.add_source(tun.source(), tun_token)?;
    let mut tunnel = Tunnel {
        tls,
        tun,
        tun_drained: false,
        decrypted: Buffer::new(MAX_RECORD + MAX_PACKET),
        limits: [decrypt_size, encrypt_size],
        packets: Buffer::new(encrypt_size + MAX_PACKET),
    };
    loop {
        let more = [tunnel.decrypt()?, tunnel.encrypt()?].contains(&true);
        for event in epoll.wait(more.then_some(Duration::ZERO))? {
            if event.token == tls_token {
                event.readable.then(|| tunnel.tls.readable());
                event.writable.then(|| tunnel.tls.writable());
            } else {
                tunnel.tun_drained = false;
            }
        }
    }
}

fn main() -> io::Result<()> {
    let args = Args::new();
    let tun = args.need::<Endpoint>("--upstream").connect()?;
    let (cert, key): (String, String) = (args.need("--cert"), args.need("--key"));
    // Four records of 16 KiB with what TLS adds.
    let ctx = tls::server(
        &cert,
        &key,
        Some(args.get("--read-ahead").unwrap_or(66 << 10)),
    )?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.need("--port")))?;
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut tls = Tls::new(&ctx, stream.into(), true)?;
        if let Err(err) = tls.handshake().and_then(|()| serve(&args, tls, &tun)) {
            eprintln!("{err}");
        }
    }
}
