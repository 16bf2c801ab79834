// What a tunnel costs without Node: one end of tools/examples/tun-tunnel.js in C, with poll, read, write and OpenSSL.
// usage: tun-exec tun-relay connect HOST PORT, with TLS_PSK, TLS_CIPHERS and TUN_FD in the environment

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECORD = 16 * 1024, LONGEST = 65575 };

static void die(const char *what) {
  perror(what);
  ERR_print_errors_fp(stderr);
  exit(1);
}

static unsigned int psk(SSL *ssl, const char *hint, char *identity, unsigned int identity_len, unsigned char *key,
                        unsigned int key_len) {
  (void)ssl;
  (void)hint;
  const char *hex = getenv("TLS_PSK");
  size_t n = strlen(hex) / 2;
  if (n > key_len) return 0;
  for (size_t i = 0; i < n; i++) {
    unsigned int byte;
    if (sscanf(hex + 2 * i, "%2x", &byte) != 1) return 0;
    key[i] = (unsigned char)byte;
  }
  snprintf(identity, identity_len, "tunnel");
  return (unsigned int)n;
}

static size_t packet_length(const unsigned char *p, size_t n) {
  if (n < 6) return SIZE_MAX;
  return p[0] >> 4 == 4 ? (size_t)p[2] << 8 | p[3] : 40 + ((size_t)p[4] << 8 | p[5]);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int tun = atoi(getenv("TUN_FD"));
  struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[3]))};
  int tcp = socket(AF_INET, SOCK_STREAM, 0);
  if (inet_pton(AF_INET, argv[2], &peer.sin_addr) != 1 || connect(tcp, (struct sockaddr *)&peer, sizeof(peer)) != 0)
    die("connect");
  int on = 1;
  setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));

  SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_max_proto_version(ctx, TLS1_2_VERSION);
  if (SSL_CTX_set_cipher_list(ctx, getenv("TLS_CIPHERS")) != 1) die("TLS_CIPHERS");
  SSL_CTX_set_psk_client_callback(ctx, psk);
  SSL_CTX_set_read_ahead(ctx, 1);
  SSL *ssl = SSL_new(ctx);
  SSL_set_fd(ssl, tcp);
  if (SSL_connect(ssl) != 1) die("SSL_connect");
  fcntl(tcp, F_SETFL, O_NONBLOCK);
  fcntl(tun, F_SETFL, O_NONBLOCK);
  puts("up");
  fflush(stdout);

  static unsigned char in[RECORD + LONGEST], out[RECORD + LONGEST];
  size_t in_len = 0, out_len = 0;
  int out_full = 0;
  for (;;) {
    struct pollfd fds[] = {{.fd = tcp, .events = POLLIN}, {.fd = tun, .events = POLLIN}};
    if (out_full) fds[0].events |= POLLOUT, fds[1].events = 0;
    if (!SSL_pending(ssl) && poll(fds, 2, -1) < 0) die("poll");

    for (;;) {
      int n = SSL_read(ssl, in + in_len, (int)(sizeof(in) - in_len));
      if (n <= 0) {
        int why = SSL_get_error(ssl, n);
        if (why == SSL_ERROR_WANT_READ) break;
        return why == SSL_ERROR_ZERO_RETURN ? 0 : 1;
      }
      in_len += (size_t)n;
      size_t at = 0, len;
      while ((len = packet_length(in + at, in_len - at)) <= in_len - at) {
        if (write(tun, in + at, len) < 0 && errno == EBADFD) die("write");
        at += len;
      }
      memmove(in, in + at, in_len - at);
      in_len -= at;
    }

    for (;;) {
      ssize_t n = 0;
      while (!out_full && out_len < RECORD) {
        n = read(tun, out + out_len, LONGEST);
        if (n < 0) break;
        out_len += (size_t)n;
      }
      if (out_len == 0) break;
      int written = SSL_write(ssl, out, (int)out_len);
      out_full = written <= 0;
      if (out_full && SSL_get_error(ssl, written) != SSL_ERROR_WANT_WRITE) return 1;
      if (out_full) break;
      out_len = 0;
      if (n < 0) break;
    }
  }
}
