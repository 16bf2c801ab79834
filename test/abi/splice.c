/* Drives the C ABI without Node: a TLS session in memory, a socket pair as the endpoint, and a loop that does what the
 * actions say. Ends non-zero at the first thing that is not as it should be. */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include "tls_splice.h"

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (!(condition)) {                                                           \
      fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);   \
      ERR_print_errors_fp(stderr);                                                \
      exit(1);                                                                    \
    }                                                                             \
  } while (0)

enum { BOTH = TLS_SPLICE_DECRYPT | TLS_SPLICE_ENCRYPT, PIECE = 16 * 1024 };

#define OK(call) CHECK((call) == TLS_SPLICE_OK)

/* --- A kernel that lies ----------------------------------------------------------------------------------------- */

/* How many bytes more than are true send(2) and recv(2) say they have moved, for the splice. */
static ssize_t lie;

ssize_t send(int fd, const void *buf, size_t len, int flags) {
  ssize_t n = syscall(SYS_sendto, fd, buf, len, flags, NULL, 0);
  return n > 0 ? n + lie : n;
}

ssize_t recv(int fd, void *buf, size_t len, int flags) {
  ssize_t n = syscall(SYS_recvfrom, fd, buf, len, flags, NULL, NULL);
  return n > 0 ? n + lie : n;
}

/* --- A stream whose every byte tells where it belongs ----------------------------------------------------------- */

struct stream {
  unsigned seed;
  size_t at;
};

static unsigned char stream_byte(unsigned seed, size_t at) {
  return (unsigned char)(at ^ (at >> 8) * 31 ^ (at >> 16) * 7 ^ seed);
}

static void stream_make(struct stream *stream, unsigned char *out, size_t len) {
  for (size_t i = 0; i < len; i++) out[i] = stream_byte(stream->seed, stream->at++);
}

static void stream_check(struct stream *stream, const unsigned char *bytes, size_t len) {
  for (size_t i = 0; i < len; i++) CHECK(bytes[i] == stream_byte(stream->seed, stream->at++));
}

/* --- TLS in memory ---------------------------------------------------------------------------------------------- */

static SSL *make_ssl(int version, int server) {
  SSL_CTX *ctx = SSL_CTX_new(TLS_method());
  CHECK(ctx != NULL);
  CHECK(SSL_CTX_set_min_proto_version(ctx, version) == 1);
  CHECK(SSL_CTX_set_max_proto_version(ctx, version) == 1);
  if (server) {
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    CHECK(key != NULL && cert != NULL);
    X509_gmtime_adj(X509_getm_notBefore(cert), 0);
    X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    CHECK(X509_set_pubkey(cert, key) == 1);
    CHECK(X509_sign(cert, key, EVP_sha256()) > 0);
    CHECK(SSL_CTX_use_certificate(ctx, cert) == 1);
    CHECK(SSL_CTX_use_PrivateKey(ctx, key) == 1);
    X509_free(cert);
    EVP_PKEY_free(key);
  }
  SSL *ssl = SSL_new(ctx);
  CHECK(ssl != NULL);
  SSL_CTX_free(ctx);
  SSL_set_bio(ssl, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
  if (server) {
    SSL_set_accept_state(ssl);
  } else {
    SSL_set_connect_state(ssl);
  }
  return ssl;
}

/* Everything that `from` has to send, to `to`. Returns how much. */
static size_t carry(BIO *from, SSL *to) {
  unsigned char buf[PIECE];
  size_t total = 0;
  int n;
  while ((n = BIO_read(from, buf, sizeof(buf))) > 0) {
    CHECK(BIO_write(SSL_get_rbio(to), buf, n) == n);
    total += (size_t)n;
  }
  return total;
}

/* --- The rig: peer <=> ours <=splice=> near <-> far ------------------------------------------------------------- */

struct rig {
  SSL *peer, *ours;
  BIO *wbio; /* Its own, which it writes to by way of the splice's or itself. */
  int near, far;
  struct tls_splice *splice;
  bool attach, paused, in_over, out_over, failed, turn_is_due, panicked;
  int ssl_error;
  struct stream peer_sends, sink_gets, source_sends, peer_gets;
};

static void rig_open(struct rig *rig, int version, bool attach, size_t high_water_mark) {
  memset(rig, 0, sizeof(*rig));
  rig->peer_sends.seed = rig->sink_gets.seed = 1;
  rig->source_sends.seed = rig->peer_gets.seed = 2;
  rig->peer = make_ssl(version, 0);
  rig->ours = make_ssl(version, 1);
  rig->wbio = SSL_get_wbio(rig->ours);
  for (int i = 0; i < 10; i++) {
    SSL_do_handshake(rig->peer);
    carry(SSL_get_wbio(rig->peer), rig->ours);
    SSL_do_handshake(rig->ours);
    carry(rig->wbio, rig->peer);
  }
  unsigned char byte;
  CHECK(SSL_read(rig->peer, &byte, 1) == -1 && SSL_is_init_finished(rig->peer));
  ERR_clear_error();

  int pair[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  rig->near = pair[0];
  rig->far = pair[1];
  CHECK(fcntl(rig->far, F_SETFL, O_NONBLOCK) == 0);

  struct tls_splice_config config = {
      .struct_size = sizeof(config), .fd = rig->near, .directions = BOTH, .high_water_mark = high_water_mark};
  OK(tls_splice_new(&config, &rig->splice));
  OK(tls_splice_start(rig->splice, TLS_SPLICE_DECRYPT, NULL));
  OK(tls_splice_start(rig->splice, TLS_SPLICE_ENCRYPT, NULL));
  rig->attach = attach;
  if (attach) {
    OK(tls_splice_attach(rig->splice, TLS_SPLICE_DECRYPT, rig->ours));
    OK(tls_splice_attach(rig->splice, TLS_SPLICE_ENCRYPT, rig->ours));
  }
  rig->turn_is_due = true;
}

static void rig_detach(struct rig *rig) {
  OK(tls_splice_detach(rig->splice, TLS_SPLICE_DECRYPT, rig->ours));
  OK(tls_splice_detach(rig->splice, TLS_SPLICE_ENCRYPT, rig->ours));
}

static void rig_close(struct rig *rig) {
  if (rig->splice != NULL && !rig->panicked) rig_detach(rig);
  OK(tls_splice_free(rig->splice));
  CHECK((fcntl(rig->near, F_GETFL) & O_NONBLOCK) == 0);
  SSL_free(rig->peer);
  SSL_free(rig->ours);
  close(rig->near);
  if (rig->far >= 0) close(rig->far);
  ERR_clear_error();
}

static struct tls_splice_stats rig_stats(struct rig *rig) {
  struct tls_splice_stats stats = {.struct_size = sizeof(stats)};
  OK(tls_splice_get_stats(rig->splice, &stats));
  return stats;
}

static struct tls_splice_state rig_state(struct rig *rig) {
  struct tls_splice_state state = {.struct_size = sizeof(state)};
  OK(tls_splice_get_state(rig->splice, &state));
  return state;
}

static size_t rig_undelivered(struct rig *rig) {
  size_t held;
  OK(tls_splice_take_undelivered(rig->splice, NULL, 0, &held));
  return held;
}

static void rig_flush(struct rig *rig) {
  unsigned char buf[PIECE];
  int n;
  carry(rig->wbio, rig->peer);
  while ((n = SSL_read(rig->peer, buf, sizeof(buf))) > 0) stream_check(&rig->peer_gets, buf, (size_t)n);
  ERR_clear_error();
}

/* What has been collected: a stream that takes at most PIECE bytes now. */
static void rig_write(struct rig *rig) {
  struct tls_splice_buf pieces[2];
  size_t count;
  OK(tls_splice_collected(rig->splice, pieces, 2, &count));
  if (count == 0) return;
  size_t n = pieces[0].len < PIECE ? pieces[0].len : PIECE;
  CHECK(BIO_write(SSL_get_rbio(rig->peer), pieces[0].base, (int)n) == (int)n);
  OK(tls_splice_written(rig->splice, n));
  if (count > 1 || n < pieces[0].len) OK(tls_splice_write_later(rig->splice));
  OK(tls_splice_collected(rig->splice, pieces, 2, &count));
  CHECK(count == 0);
}

static uint32_t rig_report(struct rig *rig, uint32_t event) {
  struct tls_splice_actions actions = {.struct_size = sizeof(actions)};
  OK(tls_splice_on(rig->splice, event, 0, rig->ours, &actions));
  if (actions.ssl_ret != 1) rig->ssl_error = SSL_get_error(rig->ours, actions.ssl_ret);
  ERR_clear_error();
  rig->turn_is_due = rig->turn_is_due || (actions.orders & TLS_SPLICE_ACTION_NEXT_TURN);
  const struct tls_splice_state state = rig_state(rig);
  if (state.reading != TLS_SPLICE_READING_AS_IT_IS) rig->paused = state.reading == TLS_SPLICE_READING_OFF;
  rig->in_over = state.outcome & TLS_SPLICE_OUTCOME_IN_OVER;
  rig->out_over = state.outcome & TLS_SPLICE_OUTCOME_OUT_OVER;
  rig->failed = state.outcome & TLS_SPLICE_OUTCOME_ENDPOINT_FAILED;
  return actions.orders;
}

/* Reports an event, and does what the splice then orders, as often as it does. */
static void rig_on(struct rig *rig, uint32_t event) {
  const uint32_t orders = rig_report(rig, event);
  if (orders & TLS_SPLICE_ACTION_FLUSH) {
    rig_write(rig);
    rig_flush(rig);
    rig_on(rig, TLS_SPLICE_ON_LOWER_DRAINED);
  }
  if (orders & TLS_SPLICE_ACTION_CYCLE) {
    rig_on(rig, TLS_SPLICE_ON_DECRYPT);
    rig_on(rig, TLS_SPLICE_ON_CYCLED);
  }
}

static void begin_turn(void) {
  static uint64_t turn;
  OK(tls_splice_begin_turn(++turn));
}

/* What uv_read would do with what the peer has sent. */
static bool rig_stream(struct rig *rig) {
  BIO *wire = SSL_get_wbio(rig->peer);
  if (rig->paused || BIO_ctrl_pending(wire) == 0) return false;
  if (rig->attach) {
    struct tls_splice_buf buf;
    OK(tls_splice_alloc(rig->splice, &buf));
    if (buf.len == 0) {
      /* It is enough for one turn. */
      begin_turn();
      OK(tls_splice_alloc(rig->splice, &buf));
    }
    CHECK(buf.len > 0);
    int n = BIO_read(wire, buf.base, (int)(buf.len < PIECE ? buf.len : PIECE));
    CHECK(n > 0);
    OK(tls_splice_commit(rig->splice, (size_t)n));
  } else {
    unsigned char buf[PIECE];
    int n = BIO_read(wire, buf, sizeof(buf));
    CHECK(n > 0 && BIO_write(SSL_get_rbio(rig->ours), buf, n) == n);
  }
  rig_on(rig, TLS_SPLICE_ON_DECRYPT);
  rig_on(rig, TLS_SPLICE_ON_LOWER_READ);
  return true;
}

/* One turn of the loop. Whether anything was to be done. */
static bool rig_turn(struct rig *rig) {
  begin_turn();
  bool busy = rig_stream(rig);
  if (rig->turn_is_due) {
    rig->turn_is_due = false;
    rig_on(rig, TLS_SPLICE_ON_TURN);
    busy = true;
  }
  uint32_t interest;
  OK(tls_splice_begin_wait(rig->splice, rig->ours, &interest));
  if (interest != 0 && !rig->failed) {
    int fd;
    OK(tls_splice_poll_fd(rig->splice, &fd));
    struct pollfd pollfd = {.fd = fd,
                            .events = (short)((interest & TLS_SPLICE_READABLE ? POLLIN : 0) | (interest & TLS_SPLICE_WRITABLE ? POLLOUT : 0))};
    CHECK(poll(&pollfd, 1, 0) >= 0);
    uint32_t polled = (pollfd.revents & (POLLIN | POLLHUP) ? TLS_SPLICE_READABLE : 0) | (pollfd.revents & POLLOUT ? TLS_SPLICE_WRITABLE : 0);
    uint32_t ready = 0;
    if (polled != 0) OK(tls_splice_ready(rig->splice, polled, &ready));
    if (ready & TLS_SPLICE_WRITABLE) rig_on(rig, TLS_SPLICE_ON_SINK_READY);
    if (ready & TLS_SPLICE_READABLE) rig_on(rig, TLS_SPLICE_ON_SOURCE_READY);
    busy = busy || ready != 0;
  }
  return busy;
}

static void rig_settle(struct rig *rig) {
  size_t turns = 0;
  while (rig_turn(rig)) CHECK(++turns < 1000000);
}

static size_t rig_read_sink(struct rig *rig, size_t most) {
  unsigned char buf[PIECE];
  size_t total = 0;
  while (total < most) {
    size_t len = most - total < sizeof(buf) ? most - total : sizeof(buf);
    ssize_t n = read(rig->far, buf, len);
    if (n <= 0) break;
    stream_check(&rig->sink_gets, buf, (size_t)n);
    total += (size_t)n;
  }
  return total;
}

static void rig_peer_write(struct rig *rig, size_t len) {
  unsigned char buf[PIECE];
  while (len > 0) {
    size_t n = len < sizeof(buf) ? len : sizeof(buf);
    stream_make(&rig->peer_sends, buf, n);
    CHECK(SSL_write(rig->peer, buf, (int)n) == (int)n);
    len -= n;
  }
}

static void rig_source_write(struct rig *rig, size_t len) {
  unsigned char buf[PIECE];
  while (len > 0) {
    size_t n = len < sizeof(buf) ? len : sizeof(buf);
    struct stream ahead = rig->source_sends;
    stream_make(&ahead, buf, n);
    ssize_t written = write(rig->far, buf, n);
    if (written <= 0) return;
    rig->source_sends.at += (size_t)written;
    len -= (size_t)written;
  }
}

/* Gives both directions back. Returns what SSL_read(3) returned that JavaScript has yet to hear of, or 1. */
static int rig_release(struct rig *rig) {
  struct tls_splice_actions actions = {.struct_size = sizeof(actions)};
  for (int direction = TLS_SPLICE_DECRYPT; direction <= TLS_SPLICE_ENCRYPT; direction++) {
    OK(tls_splice_on(rig->splice, TLS_SPLICE_ON_RELEASE, direction, NULL, &actions));
    CHECK(actions.orders == 0 && actions.ssl_ret == 1);
  }
  rig_detach(rig);
  CHECK(rig_state(rig).owes == rig_state(rig).holds_tls_error);
  ERR_clear_error();
  OK(tls_splice_on(rig->splice, TLS_SPLICE_ON_RESUME, 0, NULL, &actions));
  CHECK(!rig_state(rig).owes);
  return actions.ssl_ret;
}

/* --- The tests -------------------------------------------------------------------------------------------------- */

static void test_megabytes(int version, bool attach, size_t high_water_mark, size_t total) {
  struct rig rig;
  rig_open(&rig, version, attach, high_water_mark);
  rig_peer_write(&rig, total);
  rig_settle(&rig);
  struct tls_splice_stats stats = rig_stats(&rig);
  CHECK(rig.paused && stats.stalls_in == 1);
  CHECK(stats.bytes_decrypted - stats.bytes_in <= high_water_mark);
  while (rig.sink_gets.at < total || rig.peer_gets.at < total) {
    size_t before = rig.sink_gets.at + rig.peer_gets.at;
    /* The sink reads a little at a time, and not every time. */
    if (rig.sink_gets.at % 3 != 0 || rig.peer_gets.at == total) rig_read_sink(&rig, 100000);
    rig_read_sink(&rig, 1000);
    if (rig.source_sends.at < total) {
      size_t left = total - rig.source_sends.at;
      rig_source_write(&rig, left < 300000 ? left : 300000);
    }
    rig_settle(&rig);
    CHECK(rig.sink_gets.at + rig.peer_gets.at > before);
  }
  stats = rig_stats(&rig);
  CHECK(stats.bytes_in == total && stats.bytes_out == total);
  CHECK(!attach || stats.peak_buffered_in <= high_water_mark);

  /* Both ways end, in order. */
  CHECK(shutdown(rig.far, SHUT_WR) == 0);
  rig_settle(&rig);
  CHECK(rig.out_over && !rig.in_over);
  rig_peer_write(&rig, 1000);
  SSL_shutdown(rig.peer);
  rig_settle(&rig);
  CHECK(rig.in_over && rig.ssl_error == SSL_ERROR_ZERO_RETURN);
  CHECK(rig_stats(&rig).close_notify == 1);
  OK(tls_splice_shutdown_write(rig.splice));
  CHECK(rig_read_sink(&rig, 2000) == 1000);
  unsigned char byte;
  CHECK(read(rig.far, &byte, 1) == 0);
  rig_close(&rig);
}

static void test_bad_record(int version, bool attach) {
  struct rig rig;
  rig_open(&rig, version, attach, 65536);
  rig_peer_write(&rig, 100000);
  static const unsigned char garbage[45] = {23, 3, 3, 0, 40};
  CHECK(BIO_write(SSL_get_wbio(rig.peer), garbage, sizeof(garbage)) == sizeof(garbage));
  do rig_settle(&rig);
  while (rig_read_sink(&rig, 100000) > 0);
  CHECK(rig.sink_gets.at == 100000);
  CHECK(rig.in_over && rig.ssl_error == SSL_ERROR_SSL);
  CHECK(rig_stats(&rig).close_notify == 0);
  rig_close(&rig);
}

static void test_stop(int version, bool attach) {
  struct rig rig;
  rig_open(&rig, version, attach, 65536);
  rig_peer_write(&rig, 2000000);
  rig_source_write(&rig, 50000);
  rig_settle(&rig);
  rig_source_write(&rig, 50000);
  rig_on(&rig, TLS_SPLICE_ON_STOP);
  CHECK(rig_state(&rig).outcome == (TLS_SPLICE_OUTCOME_IN_STOPPED | TLS_SPLICE_OUTCOME_OUT_STOPPED));
  /* Nothing moves any more. */
  const struct tls_splice_stats stopped = rig_stats(&rig);
  CHECK(rig_report(&rig, TLS_SPLICE_ON_DECRYPT) == 0 && rig_report(&rig, TLS_SPLICE_ON_SOURCE_READY) == 0);
  const struct tls_splice_stats later = rig_stats(&rig);
  CHECK(memcmp(&stopped, &later, sizeof(stopped)) == 0);
  CHECK(rig.peer_gets.at == rig_stats(&rig).bytes_out);

  /* In order: what the sink has, what it has not taken, what OpenSSL still has. */
  rig_read_sink(&rig, 2000000);
  CHECK(rig.sink_gets.at == rig_stats(&rig).bytes_in);
  const size_t held = rig_undelivered(&rig);
  size_t taken;
  unsigned char *bytes = malloc(held);
  CHECK(bytes != NULL && held > 0);
  OK(tls_splice_take_undelivered(rig.splice, bytes, held, &taken));
  CHECK(taken == held);
  stream_check(&rig.sink_gets, bytes, held);
  CHECK(rig_undelivered(&rig) == 0);
  free(bytes);
  rig_release(&rig);
  carry(SSL_get_wbio(rig.peer), rig.ours);
  unsigned char buf[PIECE];
  int n;
  while ((n = SSL_read(rig.ours, buf, sizeof(buf))) > 0) stream_check(&rig.sink_gets, buf, (size_t)n);
  CHECK(rig.sink_gets.at == 2000000);
  rig_close(&rig);
}

static void test_broken_sink(void) {
  struct rig rig;
  rig_open(&rig, TLS1_3_VERSION, true, 65536);
  close(rig.far);
  rig.far = -1;
  rig_peer_write(&rig, 1000);
  rig_settle(&rig);
  struct tls_splice_failure failure = {.struct_size = sizeof(failure)};
  CHECK(rig.failed);
  OK(tls_splice_get_failure(rig.splice, &failure));
  CHECK(failure.errnum == EPIPE && failure.is_write && !failure.is_tls);
  CHECK(rig_undelivered(&rig) == 1000);
  rig_close(&rig);
}

/* A bad record behind bytes that are not delivered is the caller's, once. */
static void test_taken_end(int version, bool attach) {
  struct rig rig;
  rig_open(&rig, version, attach, 65536);
  /* So that it is full. */
  unsigned char buf[PIECE] = {0};
  while (send(rig.near, buf, sizeof(buf), MSG_DONTWAIT) > 0) {}
  rig_peer_write(&rig, 1000);
  rig_settle(&rig);
  CHECK(!rig_state(&rig).holds_tls_error);
  rig_on(&rig, TLS_SPLICE_ON_STOP);
  CHECK(rig_release(&rig) == 1 && ERR_peek_error() == 0);
  rig_close(&rig);

  rig_open(&rig, version, attach, 65536);
  while (send(rig.near, buf, sizeof(buf), MSG_DONTWAIT) > 0) {}
  rig_peer_write(&rig, 1000);
  static const unsigned char garbage[45] = {23, 3, 3, 0, 40};
  CHECK(BIO_write(SSL_get_wbio(rig.peer), garbage, sizeof(garbage)) == sizeof(garbage));
  rig_settle(&rig);
  CHECK(rig_undelivered(&rig) == 1000 && !rig.in_over);
  CHECK(rig_state(&rig).holds_tls_error);
  rig_on(&rig, TLS_SPLICE_ON_STOP);
  const int ret = rig_release(&rig);
  CHECK(ret <= 0 && ERR_peek_error() != 0);
  CHECK(SSL_get_error(rig.ours, ret) == SSL_ERROR_SSL);
  ERR_clear_error();
  struct tls_splice_actions actions = {.struct_size = sizeof(actions)};
  OK(tls_splice_on(rig.splice, TLS_SPLICE_ON_RESUME, 0, NULL, &actions));
  CHECK(actions.ssl_ret == 1 && ERR_peek_error() == 0);
  rig_close(&rig);
}

/* --- Panics: the checks that find a lie out --------------------------------------------------------------------- */

static void check_panicked(struct rig *rig, const struct tls_splice_stats *last) {
  rig->panicked = true;
  struct tls_splice *splice = rig->splice;
  struct tls_splice_stats stats = {.struct_size = sizeof(stats)};
  struct tls_splice_failure failure = {.struct_size = sizeof(failure)};
  struct tls_splice_actions actions = {.struct_size = sizeof(actions), .orders = 7};
  struct tls_splice_transfer transfer = {.struct_size = sizeof(transfer)};
  struct tls_splice_buf buf;
  unsigned char byte = 0;
  int n = 7;
  uint32_t readiness = 7;
  size_t len = 7;
  const int codes[] = {
      tls_splice_adopt_fd(splice, -1),
      tls_splice_poll_fd(splice, &n),
      tls_splice_begin_wait(splice, rig->ours, &readiness),
      tls_splice_ready(splice, TLS_SPLICE_READABLE, &readiness),
      tls_splice_begin_transfer(splice, rig->ours, TLS_SPLICE_WRITABLE, &transfer),
      tls_splice_end_transfer(splice, TLS_SPLICE_WRITABLE, 1),
      tls_splice_pass(splice, splice, rig->ours),
      tls_splice_start(splice, TLS_SPLICE_DECRYPT, NULL),
      tls_splice_push_before(splice, TLS_SPLICE_DECRYPT, &byte, 1),
      tls_splice_on(splice, TLS_SPLICE_ON_STOP, 0, rig->ours, &actions),
      tls_splice_on(splice, TLS_SPLICE_ON_LEAVE_SOURCE, 0, NULL, &actions),
      tls_splice_on(splice, TLS_SPLICE_ON_DECRYPT, 0, rig->ours, &actions),
      tls_splice_on(splice, TLS_SPLICE_ON_SOURCE_READY, 0, rig->ours, &actions),
      tls_splice_on(splice, TLS_SPLICE_ON_GONE, 0, NULL, &actions),
      tls_splice_attach(splice, TLS_SPLICE_DECRYPT, rig->ours),
      tls_splice_detach(splice, TLS_SPLICE_DECRYPT, rig->ours),
      tls_splice_attach(splice, TLS_SPLICE_ENCRYPT, rig->ours),
      tls_splice_detach(splice, TLS_SPLICE_ENCRYPT, rig->ours),
      tls_splice_collected(splice, &buf, 1, &len),
      tls_splice_written(splice, 1),
      tls_splice_write_later(splice),
      tls_splice_alloc(splice, &buf),
      tls_splice_commit(splice, 1),
      tls_splice_shutdown_write(splice),
      tls_splice_take_undelivered(splice, NULL, 0, &len),
      tls_splice_take_undelivered(splice, &byte, 1, &len),
      tls_splice_get_failure(splice, &failure),
      tls_splice_get_stats(splice, &stats),
  };
  for (size_t i = 0; i < sizeof(codes) / sizeof(*codes); i++) CHECK(codes[i] == TLS_SPLICE_EPANIC);
  CHECK(readiness == 0 && len == 0 && n == -1 && buf.len == 0 && transfer.buf.len == 0);
  CHECK(actions.orders == 0 && actions.ssl_ret == 1);
  CHECK(rig_state(rig).outcome == TLS_SPLICE_OUTCOME_TLS_FAILED);
  CHECK(memcmp(&stats, last, sizeof(stats)) == 0);
}

/* An event in which the splice panics. */
static void check_panics_at(struct rig *rig, uint32_t event) {
  struct tls_splice_actions actions = {.struct_size = sizeof(actions), .orders = 7, .ssl_ret = 7};
  CHECK(tls_splice_on(rig->splice, event, 0, rig->ours, &actions) == TLS_SPLICE_EPANIC);
  CHECK(actions.orders == 0 && actions.ssl_ret == 1);
}

/* What is held is freed, and the session can be used to its end. */
static void test_panics(bool attach) {
  struct rig rig;
  struct tls_splice_stats last;

  rig_open(&rig, TLS1_3_VERSION, attach, 65536);
  rig_peer_write(&rig, 2000000);
  rig_source_write(&rig, 100000);
  rig_settle(&rig);
  last = rig_stats(&rig);
  rig_read_sink(&rig, 50000);
  lie = 1 << 20;
  check_panics_at(&rig, TLS_SPLICE_ON_DECRYPT);
  check_panicked(&rig, &last);
  lie = 0;
  SSL_shutdown(rig.ours);
  rig_close(&rig);

  rig_open(&rig, TLS1_3_VERSION, attach, 65536);
  rig_peer_write(&rig, 2000000);
  rig_source_write(&rig, 10000);
  rig_settle(&rig);
  rig_source_write(&rig, 100000);
  last = rig_stats(&rig);
  lie = 1 << 20;
  check_panics_at(&rig, TLS_SPLICE_ON_SOURCE_READY);
  check_panicked(&rig, &last);
  lie = 0;
  SSL_shutdown(rig.ours);
  rig_close(&rig);

  const uint32_t events[] = {TLS_SPLICE_READABLE, TLS_SPLICE_WRITABLE};
  for (int i = 0; i < 2; i++) {
    rig_open(&rig, TLS1_3_VERSION, attach, 65536);
    rig_peer_write(&rig, 2000000);
    rig_settle(&rig);
    last = rig_stats(&rig);
    struct tls_splice_transfer transfer = {.struct_size = sizeof(transfer)};
    OK(tls_splice_begin_transfer(rig.splice, rig.ours, events[i], &transfer));
    CHECK(transfer.buf.len > 0);
    CHECK(tls_splice_end_transfer(rig.splice, events[i], 1 << 20) == TLS_SPLICE_EPANIC);
    check_panicked(&rig, &last);
    rig_close(&rig);
  }

  if (!attach) return;
  rig_open(&rig, TLS1_3_VERSION, attach, 65536);
  last = rig_stats(&rig);
  struct tls_splice_buf buf;
  OK(tls_splice_alloc(rig.splice, &buf));
  CHECK(tls_splice_commit(rig.splice, 1 << 20) == TLS_SPLICE_EPANIC);
  check_panicked(&rig, &last);
  rig_close(&rig);
}

/* Of the SSL and the splice, either may be freed first, and the caller's number may be handed over. */
static void test_teardown(void) {
  struct rig rig;
  rig_open(&rig, TLS1_3_VERSION, true, 65536);
  int adopted = dup(rig.near);
  OK(tls_splice_adopt_fd(rig.splice, adopted));
  rig_peer_write(&rig, 1000);
  struct tls_splice_buf buf;
  OK(tls_splice_alloc(rig.splice, &buf));
  CHECK(buf.len > 0 && BIO_read(SSL_get_wbio(rig.peer), buf.base, 100) == 100);
  OK(tls_splice_commit(rig.splice, 100));
  SSL_free(rig.ours);
  OK(tls_splice_free(rig.splice));
  CHECK(fcntl(adopted, F_GETFD) == -1 && errno == EBADF);
  SSL_free(rig.peer);
  close(rig.near);
  close(rig.far);

  rig_open(&rig, TLS1_3_VERSION, true, 65536);
  OK(tls_splice_free(rig.splice));
  rig.splice = NULL;
  rig_close(&rig);
}

static void test_bad_arguments(void) {
  int pair[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  const struct tls_splice_config good = {
      .struct_size = sizeof(good), .fd = pair[0], .directions = BOTH, .high_water_mark = 1};
  struct tls_splice *splice = NULL;

  CHECK(tls_splice_abi_version() == TLS_SPLICE_ABI_VERSION);
  CHECK(strspn(tls_splice_version(), "0123456789.") == strlen(tls_splice_version()));
  CHECK(tls_splice_new(NULL, &splice) == TLS_SPLICE_EARG);
  CHECK(tls_splice_new(&good, NULL) == TLS_SPLICE_EARG);
  struct tls_splice_config bad = good;
  bad.struct_size = sizeof(good) - 1;
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_EABI);
  bad = good;
  bad.high_water_mark = 0;
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_EARG);
  bad = good;
  bad.directions = 0;
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_EARG);
  bad.directions = 4;
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_EARG);
  bad = good;
  bad.fd = -1;
  CHECK(tls_splice_new(&bad, &splice) == -EBADF);
  bad.fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_ENOTSUP);
  close(bad.fd);
  bad = good;
  bad.framing = 6;
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_EARG);
  bad.framing = TLS_SPLICE_FRAMING_U16BE;
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_EFRAMING);
  bad.framing = TLS_SPLICE_FRAMING_RAW;
  bad.fd = socket(AF_UNIX, SOCK_DGRAM, 0);
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_EFRAMING);
  close(bad.fd);
  bad = good;
  bad.max_packet_size = 1500;
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_ENOPACKETS);
  int pipes[2];
  CHECK(pipe(pipes) == 0);
  bad.fd = pipes[0];
  CHECK(tls_splice_new(&bad, &splice) == TLS_SPLICE_EACCMODE);
  close(pipes[0]);
  close(pipes[1]);
  CHECK(splice == NULL);

  /* The struct of a caller that knows no framing; what is behind it is not read. */
  bad = good;
  bad.struct_size = offsetof(struct tls_splice_config, framing);
  bad.framing = 6;
  OK(tls_splice_new(&bad, &splice));
  struct tls_splice_stats old = {.struct_size = offsetof(struct tls_splice_stats, packets_in), .bytes_in = 7, .packets_in = 7};
  OK(tls_splice_get_stats(splice, &old));
  CHECK(old.bytes_in == 0 && old.packets_in == 7);
  old.struct_size = sizeof(old) + 8;
  CHECK(tls_splice_get_stats(splice, &old) == TLS_SPLICE_EABI && old.packets_in == 7);
  OK(tls_splice_free(splice));
  splice = NULL;

  /* So is a handle that is NULL, and what it gives is set all the same. */
  SSL *ssl = make_ssl(TLS1_3_VERSION, 0);
  struct tls_splice_stats stats = {.struct_size = sizeof(stats)};
  struct tls_splice_state state = {.struct_size = sizeof(state), .outcome = 7};
  struct tls_splice_failure failure = {.struct_size = sizeof(failure), .errnum = 7};
  struct tls_splice_actions actions = {.struct_size = sizeof(actions), .orders = 7, .ssl_ret = 7};
  struct tls_splice_transfer transfer = {.struct_size = sizeof(transfer), .fd = 7};
  struct tls_splice_buf buf = {.len = 7};
  unsigned char byte = 0;
  int n = 7;
  uint32_t readiness = 7, ready = 7;
  size_t count = 7, len = 7;
  OK(tls_splice_free(NULL));
  const int codes[] = {
      tls_splice_adopt_fd(NULL, -1),
      tls_splice_start(NULL, TLS_SPLICE_DECRYPT, NULL),
      tls_splice_on(NULL, TLS_SPLICE_ON_STOP, 0, ssl, &actions),
      tls_splice_on(NULL, TLS_SPLICE_ON_LEAVE_SOURCE, 0, NULL, &actions),
      tls_splice_get_state(NULL, &state),
      tls_splice_shutdown_write(NULL),
      tls_splice_push_before(NULL, TLS_SPLICE_DECRYPT, &byte, 1),
      tls_splice_commit(NULL, 1),
      tls_splice_detach(NULL, TLS_SPLICE_DECRYPT, ssl),
      tls_splice_attach(NULL, TLS_SPLICE_DECRYPT, ssl),
      tls_splice_detach(NULL, TLS_SPLICE_ENCRYPT, ssl),
      tls_splice_attach(NULL, TLS_SPLICE_ENCRYPT, ssl),
      tls_splice_written(NULL, 1),
      tls_splice_write_later(NULL),
      tls_splice_end_transfer(NULL, TLS_SPLICE_READABLE, 1),
      tls_splice_pass(NULL, NULL, ssl),
      tls_splice_get_stats(NULL, &stats),
      tls_splice_get_failure(NULL, &failure),
      tls_splice_collected(NULL, &buf, 1, &count),
      tls_splice_poll_fd(NULL, &n),
      tls_splice_begin_wait(NULL, ssl, &readiness),
      tls_splice_ready(NULL, 3, &ready),
      tls_splice_begin_transfer(NULL, ssl, TLS_SPLICE_READABLE, &transfer),
      tls_splice_alloc(NULL, &buf),
      tls_splice_take_undelivered(NULL, NULL, 0, &len),
  };
  for (size_t i = 0; i < sizeof(codes) / sizeof(*codes); i++) CHECK(codes[i] == TLS_SPLICE_EARG);
  CHECK(failure.errnum == 0 && state.outcome == 0 && count == 0 && len == 0 && n == -1);
  CHECK(readiness == 0 && ready == 0 && transfer.fd == -1 && buf.len == 0);
  CHECK(actions.orders == 0 && actions.ssl_ret == 1);
  len = 7;
  CHECK(tls_splice_take_undelivered(NULL, &byte, 1, &len) == TLS_SPLICE_EARG && len == 0);

  /* A handshake is no time to change the BIO. */
  OK(tls_splice_new(&good, &splice));
  CHECK(tls_splice_attach(splice, TLS_SPLICE_DECRYPT, ssl) == TLS_SPLICE_EBUSY);
  CHECK(tls_splice_attach(splice, TLS_SPLICE_ENCRYPT, ssl) == TLS_SPLICE_EBUSY);
  CHECK(tls_splice_attach(splice, BOTH, ssl) == TLS_SPLICE_EARG);
  /* Neither does a session have to be there that nobody asks for, nor an event that there is none of. */
  OK(tls_splice_on(splice, TLS_SPLICE_ON_LEAVE_SOURCE, 0, NULL, &actions));
  CHECK(tls_splice_on(splice, TLS_SPLICE_ON_DECRYPT, 0, NULL, &actions) == TLS_SPLICE_EARG);
  CHECK(tls_splice_on(splice, 99, 0, ssl, &actions) == TLS_SPLICE_EARG);
  CHECK(tls_splice_on(splice, TLS_SPLICE_ON_TURN, 0, ssl, NULL) == TLS_SPLICE_EARG);
  actions.struct_size -= 8;
  CHECK(tls_splice_on(splice, TLS_SPLICE_ON_TURN, 0, ssl, &actions) == TLS_SPLICE_EABI);
  CHECK(tls_splice_get_failure(splice, &failure) == TLS_SPLICE_NOTHING);
  OK(tls_splice_free(splice));
  SSL_free(ssl);
  close(pair[0]);
  close(pair[1]);
}

int main(void) {
  static const int versions[] = {TLS1_2_VERSION, TLS1_3_VERSION};
  for (int i = 0; i < 4; i++) {
    const int version = versions[i / 2];
    const bool attach = i % 2 == 0;
    const char *name = version == TLS1_2_VERSION ? "1.2" : "1.3";
    const char *bio = attach ? "the splice's BIO" : "the session's own BIO";
    test_megabytes(version, attach, 262144, 8 << 20);
    test_megabytes(version, attach, 4096, 2 << 20);
    test_bad_record(version, attach);
    test_stop(version, attach);
    test_taken_end(version, attach);
    printf("ok - TLS %s, %s: megabytes both ways, close_notify, a bad record, stop\n", name, bio);
  }
  test_broken_sink();
  test_teardown();
  test_bad_arguments();
  printf("ok - a broken sink, teardown in either order, bad arguments\n");
  test_panics(true);
  test_panics(false);
  printf("ok - panics\n");
  return 0;
}
