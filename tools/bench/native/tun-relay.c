// The floor of a tunnel: one end of it, between a TUN device and TLS 1.3, in one thread. IP packets follow each other
// on the wire, none longer than the MTU of the device. With --offload the device gives and takes super-packets
// (IFF_VNET_HDR): those that it gives are cut into packets, and packets of one flow that arrive next to each other are
// joined. Nothing else is done for speed, and nothing is left out that a tunnel owes to the packets.
//
// usage: TUN_FD=3 tun-relay [--offload] listen HOST PORT CERT KEY
//        TUN_FD=3 tun-relay [--offload] connect HOST PORT

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

typedef unsigned char byte;

enum {
  LONGEST = 40 + 65535,
  // Cleartext of one turn. A run of packets is cut where a turn ends, so that half of it costs throughput.
  TURN = 128 * 1024,
  // What one super-packet becomes at most: 64 KiB with a header for each byte would be more, and is dropped.
  ROOM = TURN + 512 * 1024,
  CIPHERTEXT = ROOM + ROOM / 8,
  MOST_JOINED = 64,
};

static void die(const char *what) {
  perror(what);
  ERR_print_errors_fp(stderr);
  exit(1);
}

// --- TLS over a socket that does not block --------------------------------------------------------------------------

static int tcp;
static bool tcp_is_empty, tcp_is_full;
static byte ciphertext[CIPHERTEXT];
static size_t ciphertext_len, ciphertext_sent;

static int bio_read(BIO *bio, char *to, int len) {
  BIO_clear_retry_flags(bio);
  ssize_t n = tcp_is_empty ? -1 : recv(tcp, to, (size_t)len, 0);
  if (n < 0 && (tcp_is_empty || errno == EAGAIN)) BIO_set_retry_read(bio);
  // Less than there was room for: the next read would be in vain. An end can be read again.
  tcp_is_empty = n != 0 && n < len;
  return (int)n;
}

// Collects all records of a turn, for one system call.
static int bio_write(BIO *bio, const char *from, int len) {
  (void)bio;
  if ((size_t)len > sizeof(ciphertext) - ciphertext_len) return -1;
  memcpy(ciphertext + ciphertext_len, from, (size_t)len);
  ciphertext_len += (size_t)len;
  return len;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer) {
  (void)bio, (void)number, (void)pointer;
  return command == BIO_CTRL_FLUSH;
}

// Whether all is sent.
static bool flush(void) {
  while (ciphertext_sent < ciphertext_len) {
    size_t rest = ciphertext_len - ciphertext_sent;
    ssize_t n = tcp_is_full ? -1 : send(tcp, ciphertext + ciphertext_sent, rest, MSG_NOSIGNAL);
    if (n < 0 && !tcp_is_full && errno != EAGAIN) die("send");
    tcp_is_full = n < 0;
    if (tcp_is_full) return false;
    ciphertext_sent += (size_t)n;
  }
  ciphertext_len = ciphertext_sent = 0;
  return true;
}

static int usage(void) {
  fputs("usage: TUN_FD=3 tun-relay [--offload] listen HOST PORT CERT KEY\n"
        "       TUN_FD=3 tun-relay [--offload] connect HOST PORT\n",
        stderr);
  return 2;
}

static SSL *open_tls(char **args, int count) {
  bool is_server = strcmp(args[0], "listen") == 0;
  if (count != (is_server ? 5 : 3)) exit(usage());
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(args[2]))};
  if (inet_pton(AF_INET, args[1], &address.sin_addr) != 1) die(args[1]);
  SSL_CTX *ctx = SSL_CTX_new(TLS_method());
  SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
  if (SSL_CTX_set_ciphersuites(ctx, "TLS_AES_256_GCM_SHA384") != 1) die("ciphers");
  SSL_CTX_set_read_ahead(ctx, 1);
  SSL_CTX_set_default_read_buffer_len(ctx, TURN + 16 * 1024);
  int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (is_server) {
    if (SSL_CTX_use_certificate_chain_file(ctx, args[3]) != 1 ||
        SSL_CTX_use_PrivateKey_file(ctx, args[4], SSL_FILETYPE_PEM) != 1)
      die("certificate");
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(fd, 1) != 0) die("listen");
    puts("listening");
    fflush(stdout);
    tcp = accept(fd, NULL, NULL);
    if (tcp < 0) die("accept");
  } else {
    tcp = fd;
    if (connect(tcp, (struct sockaddr *)&address, sizeof(address)) != 0) die("connect");
  }
  setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));

  BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "socket");
  BIO_meth_set_read(method, bio_read);
  BIO_meth_set_write(method, bio_write);
  BIO_meth_set_ctrl(method, bio_ctrl);
  BIO *bio = BIO_new(method);
  BIO_set_init(bio, 1);
  SSL *ssl = SSL_new(ctx);
  SSL_set_bio(ssl, bio, bio);
  fcntl(tcp, F_SETFL, O_NONBLOCK);
  for (;;) {
    int done = is_server ? SSL_accept(ssl) : SSL_connect(ssl);
    flush();
    if (done == 1) break;
    if (SSL_get_error(ssl, done) != SSL_ERROR_WANT_READ) die("handshake");
    struct pollfd fd = {.fd = tcp, .events = POLLIN};
    poll(&fd, 1, -1);
    tcp_is_empty = false;
  }
  return ssl;
}

// --- Checksums ------------------------------------------------------------------------------------------------------

static uint16_t get16(const byte *p) { return (uint16_t)(p[0] << 8 | p[1]); }
static uint32_t get32(const byte *p) { return (uint32_t)get16(p) << 16 | get16(p + 2); }

static void put16(byte *p, size_t value) {
  p[0] = (byte)(value >> 8);
  p[1] = (byte)value;
}

static void put32(byte *p, uint32_t value) {
  put16(p, value >> 16);
  put16(p + 2, value & 0xffff);
}

// The sum of RFC 1071 in the machine's byte order, to which more can be added. Vectorised by the compiler.
static uint64_t sum(const byte *p, size_t n, uint64_t total) {
  for (; n >= 4; p += 4, n -= 4) {
    uint32_t word;
    memcpy(&word, p, 4);
    total += word;
  }
  byte rest[4] = {0};
  memcpy(rest, p, n);
  uint32_t word;
  memcpy(&word, rest, 4);
  return total + word;
}

// As it is in a packet, to be stored with memcpy().
static uint16_t fold(uint64_t total) {
  while (total >> 16) total = (total & 0xffff) + (total >> 16);
  return (uint16_t)total;
}

static void store(byte *p, uint16_t value) { memcpy(p, &value, 2); }

// --- Packets of TCP and UDP -----------------------------------------------------------------------------------------

enum { FIN = 1, PSH = 8, ACK = 16, CWR = 128 };

static size_t packet_length(const byte *p, size_t n) {
  if (n < 6) return SIZE_MAX;
  return p[0] >> 4 == 4 ? get16(p + 2) : 40 + (size_t)get16(p + 4);
}

static bool is_v4(const byte *p) { return p[0] >> 4 == 4; }
static byte protocol_of(const byte *p) { return is_v4(p) ? p[9] : p[6]; }
static size_t checksum_at(byte protocol) { return protocol == IPPROTO_TCP ? 16 : 6; }

// The sum of the pseudo-header for `len` bytes of the transport layer.
static uint64_t pseudo_header(const byte *p, byte protocol, size_t len) {
  byte rest[4] = {0, protocol, (byte)(len >> 8), (byte)len};
  return sum(rest, 4, is_v4(p) ? sum(p + 12, 8, 0) : sum(p + 8, 32, 0));
}

// Lengths of an IP packet of `len` bytes, and the checksum of an IPv4 header of `header` bytes.
static void finish_ip(byte *p, size_t header, size_t len) {
  if (!is_v4(p)) {
    put16(p + 4, len - 40);
    return;
  }
  put16(p + 2, len);
  put16(p + 10, 0);
  store(p + 10, (uint16_t)~fold(sum(p, header, 0)));
}

// --- From the device: super-packets are cut -------------------------------------------------------------------------

static int tun;
static bool has_header;
static byte packets[ROOM + LONGEST];
static size_t packets_len;

static void complete_checksum(byte *p, size_t len, size_t start, size_t at) {
  if (start + at + 2 > len) return;
  uint16_t checksum = (uint16_t)~fold(sum(p + start, len - start, 0));
  // UDP: 0 would say that there is none.
  store(p + start + at, checksum == 0 && at == 6 ? 0xffff : checksum);
}

// Appends the packets of one super-packet. One that makes no sense is dropped.
static void cut(const struct virtio_net_hdr *vnet, const byte *p, size_t len) {
  byte protocol = (vnet->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) == VIRTIO_NET_HDR_GSO_UDP_L4 ? IPPROTO_UDP : IPPROTO_TCP;
  size_t transport = vnet->csum_start, size = vnet->gso_size;
  if (len < transport + 20 || transport < (is_v4(p) ? 20 : 40) || size == 0) return;
  size_t header = transport + (protocol == IPPROTO_TCP ? (size_t)(p[transport + 12] >> 4) * 4 : 8);
  if (header < transport + 8 || header >= len) return;
  size_t count = (len - header + size - 1) / size;
  if (packets_len + len + count * header > sizeof(packets)) return;

  uint16_t id = get16(p + 4);
  uint32_t sequence = get32(p + transport + 4);
  for (size_t i = 0, at = header; at < len; i++, at += size) {
    bool is_last = len - at <= size;
    size_t payload = is_last ? len - at : size;
    byte *to = packets + packets_len;
    memcpy(to, p, header);
    memcpy(to + header, p + at, payload);
    if (is_v4(p)) put16(to + 4, id + i);
    finish_ip(to, transport, header + payload);
    byte *segment = to + transport;
    if (protocol == IPPROTO_TCP) {
      put32(segment + 4, sequence + (uint32_t)(i * size));
      if (!is_last) segment[13] &= (byte) ~(FIN | PSH);
      if (i > 0) segment[13] &= (byte)~CWR;
    } else {
      put16(segment + 4, 8 + payload);
    }
    size_t segment_len = header - transport + payload;
    put16(segment + checksum_at(protocol), 0);
    uint16_t checksum = (uint16_t)~fold(sum(segment, segment_len, pseudo_header(to, protocol, segment_len)));
    store(segment + checksum_at(protocol), checksum == 0 && protocol == IPPROTO_UDP ? 0xffff : checksum);
    packets_len += header + payload;
  }
}

// Appends what one read gives. Whether there was anything.
static bool read_device(void) {
  if (!has_header) {
    ssize_t n = read(tun, packets + packets_len, LONGEST);
    if (n > 0) packets_len += (size_t)n;
    return n > 0;
  }
  static byte super[sizeof(struct virtio_net_hdr) + LONGEST];
  struct virtio_net_hdr vnet;
  ssize_t n = read(tun, super, sizeof(super));
  if (n < (ssize_t)sizeof(vnet)) return false;
  memcpy(&vnet, super, sizeof(vnet));
  byte *p = super + sizeof(vnet);
  size_t len = (size_t)n - sizeof(vnet);
  if (vnet.gso_type != VIRTIO_NET_HDR_GSO_NONE) {
    cut(&vnet, p, len);
    return true;
  }
  if (vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) complete_checksum(p, len, vnet.csum_start, vnet.csum_offset);
  memcpy(packets + packets_len, p, len);
  packets_len += len;
  return true;
}

// --- To the device: packets of one flow are joined ------------------------------------------------------------------

// What makes two packets neighbours in a flow, and where their payload is.
struct segment {
  const byte *p;
  size_t len, transport, header;
  byte protocol, flags;
};

// Whether the packet may be joined with others at all, and its checksum is right.
static bool parse(struct segment *s, const byte *p, size_t len) {
  *s = (struct segment){.p = p, .len = len, .transport = is_v4(p) ? 20 : 40};
  if (len < s->transport + 8) return false;
  // No options of IPv4, no fragments. An extension header of IPv6 is another protocol.
  if (is_v4(p) && (p[0] != 0x45 || (get16(p + 6) & 0x3fff) != 0 || fold(sum(p, 20, 0)) != 0xffff)) return false;
  s->protocol = protocol_of(p);
  const byte *t = p + s->transport;
  if (s->protocol == IPPROTO_TCP) {
    if (len < s->transport + 20) return false;
    s->header = s->transport + (size_t)(t[12] >> 4) * 4;
    s->flags = t[13];
    if (s->header < s->transport + 20 || (s->flags & ~PSH) != ACK) return false;
  } else if (s->protocol == IPPROTO_UDP) {
    s->header = s->transport + 8;
    if (get16(t + 4) != len - s->transport || get16(t + 6) == 0) return false;
  } else {
    return false;
  }
  size_t rest = len - s->transport;
  return s->header < len && fold(sum(t, rest, pseudo_header(p, s->protocol, rest))) == 0xffff;
}

// Whether `next` follows `last`, of a run that has begun with `first` and has `count` packets.
static bool follows(const struct segment *first, const struct segment *last, const struct segment *next, size_t count) {
  const byte *a = first->p, *b = next->p;
  if (first->header != next->header || first->protocol != next->protocol || is_v4(a) != is_v4(b)) return false;
  if (next->len > first->len || last->len != first->len || last->flags & PSH) return false;
  if (is_v4(a)) {
    // Type of service, DF, time to live, addresses. Without DF, the identification counts on.
    if (a[1] != b[1] || get16(a + 6) != get16(b + 6) || a[8] != b[8] || memcmp(a + 12, b + 12, 8) != 0) return false;
    if (!(a[6] & 0x40) && get16(b + 4) != (uint16_t)(get16(a + 4) + count)) return false;
  } else if (memcmp(a, b, 4) != 0 || a[7] != b[7] || memcmp(a + 8, b + 8, 32) != 0) {
    return false;
  }
  const byte *s = a + first->transport, *t = b + next->transport;
  if (memcmp(s, t, 4) != 0) return false;
  if (first->protocol == IPPROTO_UDP) return true;
  // Acknowledgement, window, urgent pointer, options.
  return get32(t + 4) == get32(s + 4) + (uint32_t)(count * (first->len - first->header)) &&
         memcmp(s + 8, t + 8, 5) == 0 && memcmp(s + 14, t + 14, 2) == 0 &&
         memcmp(s + 18, t + 18, first->header - first->transport - 18) == 0;
}

// A packet that the device refuses is lost, as on any link. It is not up yet, for instance.
static void write_device(const struct iovec *parts, size_t count) {
  if (writev(tun, parts, (int)count) < 0 && errno == EBADFD) die("write");
}

static void write_alone(const byte *p, size_t len) {
  static struct virtio_net_hdr none;
  struct iovec parts[] = {{&none, sizeof(none)}, {(void *)p, len}};
  write_device(has_header ? parts : parts + 1, has_header ? 2 : 1);
}

static void write_run(const struct segment *run, size_t count) {
  if (count == 1) {
    write_alone(run[0].p, run[0].len);
    return;
  }
  const struct segment *first = &run[0];
  size_t transport = first->transport, header = first->header, len = header;
  byte start[128];
  struct iovec parts[2 + MOST_JOINED];
  for (size_t i = 0; i < count; i++) {
    parts[2 + i] = (struct iovec){(void *)(run[i].p + header), run[i].len - header};
    len += run[i].len - header;
  }
  memcpy(start, first->p, header);
  finish_ip(start, transport, len);
  byte *t = start + transport;
  if (first->protocol == IPPROTO_TCP)
    t[13] |= run[count - 1].flags & PSH;
  else
    put16(t + 4, len - transport);
  store(t + checksum_at(first->protocol), fold(pseudo_header(start, first->protocol, len - transport)));
  struct virtio_net_hdr vnet = {
      .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
      .gso_type = first->protocol == IPPROTO_UDP ? VIRTIO_NET_HDR_GSO_UDP_L4
                  : is_v4(start)                 ? VIRTIO_NET_HDR_GSO_TCPV4
                                                 : VIRTIO_NET_HDR_GSO_TCPV6,
      .hdr_len = (uint16_t)header,
      .gso_size = (uint16_t)(first->len - header),
      .csum_start = (uint16_t)transport,
      .csum_offset = (uint16_t)checksum_at(first->protocol),
  };
  parts[0] = (struct iovec){&vnet, sizeof(vnet)};
  parts[1] = (struct iovec){start, header};
  write_device(parts, 2 + count);
}

static bool joins_udp;

// Writes the packets at the start of `p`. How many bytes these were.
static size_t write_packets(const byte *p, size_t n) {
  static struct segment run[MOST_JOINED];
  size_t at = 0, len, count = 0, joined = 0;
  while ((len = packet_length(p + at, n - at)) <= n - at) {
    if (len < 20) exit(1);
    if (!has_header) {
      write_alone(p + at, len);
    } else {
      struct segment next;
      bool can = parse(&next, p + at, len) && (next.protocol == IPPROTO_TCP || joins_udp);
      if (count > 0 && !(can && count < MOST_JOINED && joined + len <= 65535 &&
                         follows(&run[0], &run[count - 1], &next, count))) {
        write_run(run, count);
        count = joined = 0;
      }
      if (can) {
        run[count++] = next;
        joined += len;
      } else {
        write_alone(p + at, len);
      }
    }
    at += len;
  }
  if (count > 0) write_run(run, count);
  return at;
}

// --- The tunnel -----------------------------------------------------------------------------------------------------

static byte cleartext[TURN + LONGEST];
static size_t cleartext_len;

// Whether there may be more.
static bool decrypt(SSL *ssl) {
  bool is_dry = false;
  size_t before = cleartext_len;
  while (!is_dry && cleartext_len - before < TURN - 16 * 1024) {
    int n = SSL_read(ssl, cleartext + cleartext_len, (int)(sizeof(cleartext) - cleartext_len));
    if (n > 0) {
      cleartext_len += (size_t)n;
      continue;
    }
    int why = SSL_get_error(ssl, n);
    if (why != SSL_ERROR_WANT_READ) exit(why == SSL_ERROR_ZERO_RETURN ? 0 : 1);
    is_dry = true;
  }
  size_t done = write_packets(cleartext, cleartext_len);
  memmove(cleartext, cleartext + done, cleartext_len - done);
  cleartext_len -= done;
  return !is_dry;
}

// Whether there may be more, now.
static bool encrypt(SSL *ssl) {
  if (!flush()) return false;
  bool is_dry = false;
  while (!is_dry && packets_len < TURN) is_dry = !read_device();
  if (packets_len > 0 && SSL_write(ssl, packets, (int)packets_len) != (int)packets_len) die("SSL_write");
  packets_len = 0;
  return flush() && !is_dry;
}

static void open_device(bool offload) {
  tun = atoi(getenv("TUN_FD"));
  fcntl(tun, F_SETFL, O_NONBLOCK);
  has_header = offload;
  if (!offload) return;
  int size = 0;
  if (ioctl(tun, TUNGETVNETHDRSZ, &size) != 0 || size != sizeof(struct virtio_net_hdr)) die("TUNGETVNETHDRSZ");
  unsigned int mask = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
  if (ioctl(tun, TUNSETOFFLOAD, mask) != 0) die("TUNSETOFFLOAD");
  // Linux 6.2 and later.
  joins_udp = ioctl(tun, TUNSETOFFLOAD, mask | TUN_F_USO4 | TUN_F_USO6) == 0;
}

int main(int argc, char **argv) {
  int first = 1;
  bool offload = argc > 1 && strcmp(argv[1], "--offload") == 0;
  if (offload) first = 2;
  if (argc < first + 3 || !getenv("TUN_FD")) return usage();
  open_device(offload);
  SSL *ssl = open_tls(argv + first, argc - first);
  puts("up");
  fflush(stdout);
  for (;;) {
    bool more = decrypt(ssl);
    more |= encrypt(ssl);
    struct pollfd fds[] = {{.fd = tcp, .events = POLLIN}, {.fd = tun, .events = POLLIN}};
    if (tcp_is_full) fds[0].events |= POLLOUT, fds[1].events = 0;
    if (poll(fds, 2, more ? 0 : -1) < 0) die("poll");
    if (fds[0].revents & (POLLIN | POLLERR | POLLHUP)) tcp_is_empty = false;
    if (fds[0].revents & POLLOUT) tcp_is_full = false;
  }
}
