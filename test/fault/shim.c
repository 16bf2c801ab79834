// Preloaded into out/node, and loaded by fault.js as an add-on: makes system calls on chosen files short, makes them
// fail, end, or wait, and has epoll report in another order.
//
// A rule belongs to what a descriptor refers to, not to its number: the splice reads and writes a duplicate, or a
// description of its own. Only reads or only writes, since both ends of a pipe are one inode.

#define _GNU_SOURCE
#define NAPI_VERSION 8
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <node_api.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
  kRead, kReadv, kPread, kRecv, kRecvmsg, kRecvmmsg, kWrite, kWritev, kPwrite, kSend, kSendmsg, kSendmmsg, kFunctions
};

enum {
  kShort,  // At least one byte, fewer than were asked for.
  kFail,   // errnum, once `after` bytes have passed: to the byte, as on a disk that is full.
  kEnd,    // 0, once `after` bytes have passed: the end of the file, or a write of nothing.
  kMore,   // 1 MiB more than is true, which no kernel says, once `after` bytes have passed.
  kHold,   // Waits for release(). Not on the main thread, which would wait for itself: that is counted.
};

typedef struct {
  dev_t dev;
  ino_t ino;
  bool writes;
  int kind;
  int errnum;
  double rate;     // Of the calls that it could befall, but for the first one, which it does.
  bool struck;
  uint64_t after;
  uint64_t times;  // How often, at most.
  uint64_t bytes;  // Moved by the calls that it could befall.
  uint64_t injected[kFunctions];
  uint64_t held;
  uint64_t on_main_thread;
} Rule;

#define MAX_RULES 32

static Rule rules[MAX_RULES];
static int rule_count;
static atomic_bool active;
static uint64_t random_state = 1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;

// With the mutex.
static uint64_t Random(void) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

static bool Chance(double rate) { return (double)(Random() >> 11) * 0x1p-53 < rate; }

// EAGAIN says that poll() will tell when to try again. Of a FIFO that had lost its writer before it was opened it says
// nothing, but a read gives the end of file, and never EAGAIN.
static bool IsPolled(int function, int fd) {
  struct pollfd pollfd = { .fd = fd, .events = function >= kWrite ? POLLOUT : POLLIN };
  return poll(&pollfd, 1, 0) == 1;
}

// libuv takes less than it asked for, from a socket that has hung up, for the last. A kernel keeps to that.
static bool IsLast(int function, int fd, mode_t mode) {
  if (function != kRead || !S_ISSOCK(mode)) return false;
  struct pollfd pollfd = { .fd = fd, .events = POLLIN };
  return poll(&pollfd, 1, 0) == 1 && (pollfd.revents & POLLHUP) != 0;
}

// What is to become of a call.
typedef struct {
  bool matches;
  bool ends;
  int errnum;
  size_t len;
  size_t more;
  Rule* shortens;
  struct stat stat;
} Verdict;

static bool Matches(const Rule* rule, const struct stat* stat, int function) {
  return rule->dev == stat->st_dev && rule->ino == stat->st_ino && rule->writes == (function >= kWrite);
}

static Verdict Judge(int function, int fd, size_t len) {
  Verdict verdict = { .len = len };
  if (!atomic_load(&active) || fstat(fd, &verdict.stat) != 0) return verdict;
  pthread_mutex_lock(&mutex);
  for (int i = 0; i < rule_count && verdict.errnum == 0 && !verdict.ends; i++) {
    Rule* rule = &rules[i];
    if (!Matches(rule, &verdict.stat, function)) continue;
    verdict.matches = true;
    if (rule->times == 0) continue;
    const bool waits = rule->kind == kFail || rule->kind == kEnd || rule->kind == kMore;
    if (waits && rule->bytes < rule->after) {
      if (verdict.len > rule->after - rule->bytes) verdict.len = rule->after - rule->bytes;
      continue;
    }
    if (rule->struck && !Chance(rule->rate)) continue;
    switch (rule->kind) {
      case kShort:
        if (verdict.len < 2 || verdict.shortens != NULL || IsLast(function, fd, verdict.stat.st_mode)) break;
        // As often a few bytes as any number of them.
        verdict.len = 1 + Random() % ((Random() & 1) != 0 && verdict.len > 64 ? 63 : verdict.len - 1);
        verdict.shortens = rule;
        rule->times--;
        rule->struck = true;
        break;
      case kFail:
        if (rule->errnum == EAGAIN && !IsPolled(function, fd)) break;
        verdict.errnum = rule->errnum;
        rule->injected[function]++;
        rule->times--;
        rule->struck = true;
        break;
      case kEnd:
        verdict.ends = true;
        rule->injected[function]++;
        rule->times--;
        rule->struck = true;
        break;
      case kMore:
        verdict.more = 1 << 20;
        rule->injected[function]++;
        rule->times--;
        rule->struck = true;
        break;
      case kHold:
        if (gettid() == getpid()) {
          rule->on_main_thread++;
          break;
        }
        rule->injected[function]++;
        rule->times--;
        rule->struck = true;
        rule->held++;
        while (rule->held != 0) pthread_cond_wait(&released, &mutex);
        break;
    }
  }
  pthread_mutex_unlock(&mutex);
  return verdict;
}

static ssize_t Done(int function, const Verdict* verdict, ssize_t result) {
  if (!verdict->matches || result <= 0) return result;
  int saved = errno;
  pthread_mutex_lock(&mutex);
  for (int i = 0; i < rule_count; i++)
    if (Matches(&rules[i], &verdict->stat, function)) rules[i].bytes += result;
  // It would have been as short without us if the kernel had no more.
  if (verdict->shortens != NULL && (size_t)result == verdict->len) verdict->shortens->injected[function]++;
  pthread_mutex_unlock(&mutex);
  errno = saved;
  return result + (ssize_t)verdict->more;
}

#define REAL(name) \
  static __typeof(&name) real; \
  if (real == NULL) real = (__typeof(&name))dlsym(RTLD_NEXT, #name)

#define INJECT(name, function, fd, len, call) \
  REAL(name); \
  Verdict verdict = Judge(function, fd, len); \
  if (verdict.errnum != 0) { \
    errno = verdict.errnum; \
    return -1; \
  } \
  if (verdict.ends) return 0; \
  return Done(function, &verdict, call)

ssize_t read(int fd, void* buf, size_t len) { INJECT(read, kRead, fd, len, real(fd, buf, verdict.len)); }

ssize_t write(int fd, const void* buf, size_t len) { INJECT(write, kWrite, fd, len, real(fd, buf, verdict.len)); }

ssize_t pread64(int fd, void* buf, size_t len, off64_t offset) {
  INJECT(pread64, kPread, fd, len, real(fd, buf, verdict.len, offset));
}

ssize_t pwrite64(int fd, const void* buf, size_t len, off64_t offset) {
  INJECT(pwrite64, kPwrite, fd, len, real(fd, buf, verdict.len, offset));
}

ssize_t recv(int fd, void* buf, size_t len, int flags) {
  INJECT(recv, kRecv, fd, len, real(fd, buf, verdict.len, flags));
}

ssize_t send(int fd, const void* buf, size_t len, int flags) {
  INJECT(send, kSend, fd, len, real(fd, buf, verdict.len, flags));
}

static size_t Length(const struct iovec* iov, size_t count) {
  size_t len = 0;
  for (size_t i = 0; i < count; i++) len += iov[i].iov_len;
  return len;
}

// The first `len` bytes of `iov`, in `out`. Returns how many buffers that takes.
static size_t Cut(const struct iovec* iov, size_t count, size_t len, struct iovec* out) {
  size_t n = 0;
  for (; n < count && len > 0; n++) {
    out[n] = iov[n];
    if (out[n].iov_len > len) out[n].iov_len = len;
    len -= out[n].iov_len;
  }
  return n;
}

#define MAX_BUFFERS 1024  // IOV_MAX

ssize_t readv(int fd, const struct iovec* iov, int count) {
  struct iovec cut[MAX_BUFFERS];
  INJECT(readv, kReadv, fd, Length(iov, count), real(fd, cut, Cut(iov, count, verdict.len, cut)));
}

ssize_t writev(int fd, const struct iovec* iov, int count) {
  struct iovec cut[MAX_BUFFERS];
  INJECT(writev, kWritev, fd, Length(iov, count), real(fd, cut, Cut(iov, count, verdict.len, cut)));
}

// `msg` with the buffers in `cut`, in `out`.
static struct msghdr* CutMessage(const struct msghdr* msg, size_t len, struct iovec* cut, struct msghdr* out) {
  *out = *msg;
  out->msg_iov = cut;
  out->msg_iovlen = Cut(msg->msg_iov, msg->msg_iovlen, len, cut);
  return out;
}

ssize_t sendmsg(int fd, const struct msghdr* msg, int flags) {
  struct iovec cut[MAX_BUFFERS];
  struct msghdr out;
  INJECT(sendmsg, kSendmsg, fd, Length(msg->msg_iov, msg->msg_iovlen),
         real(fd, CutMessage(msg, verdict.len, cut, &out), flags));
}

// As the kernel does it: an error ends the call in front of its message, and is told only if that is the first.
int sendmmsg(int fd, struct mmsghdr* messages, unsigned int count, int flags) {
  REAL(sendmmsg);
  unsigned int sent = 0;
  for (; sent < count; sent++) {
    const struct msghdr* msg = &messages[sent].msg_hdr;
    Verdict verdict = Judge(kSendmmsg, fd, Length(msg->msg_iov, msg->msg_iovlen));
    if (verdict.errnum != 0) {
      if (sent > 0) break;
      errno = verdict.errnum;
      return -1;
    }
  }
  return real(fd, messages, sent, flags);
}

int recvmmsg(int fd, struct mmsghdr* messages, unsigned int count, int flags, struct timespec* timeout) {
  REAL(recvmmsg);
  Verdict verdict = Judge(kRecvmmsg, fd, Length(messages->msg_hdr.msg_iov, messages->msg_hdr.msg_iovlen));
  if (verdict.errnum != 0) {
    errno = verdict.errnum;
    return -1;
  }
  return real(fd, messages, count, flags, timeout);
}

ssize_t recvmsg(int fd, struct msghdr* msg, int flags) {
  REAL(recvmsg);
  Verdict verdict = Judge(kRecvmsg, fd, Length(msg->msg_iov, msg->msg_iovlen));
  if (verdict.errnum != 0) {
    errno = verdict.errnum;
    return -1;
  }
  if (verdict.ends) return 0;
  struct iovec cut[MAX_BUFFERS];
  struct msghdr out;
  ssize_t result = real(fd, CutMessage(msg, verdict.len, cut, &out), flags);
  msg->msg_namelen = out.msg_namelen;
  msg->msg_controllen = out.msg_controllen;
  msg->msg_flags = out.msg_flags;
  return Done(kRecvmsg, &verdict, result);
}

// The kernel reports events in an order of its own.
static atomic_bool reverses;

int epoll_pwait(int epfd, struct epoll_event* events, int max, int timeout, const sigset_t* mask) {
  REAL(epoll_pwait);
  int count = real(epfd, events, max, timeout, mask);
  if (!atomic_load(&reverses)) return count;
  for (int i = 0, j = count - 1; i < j; i++, j--) {
    struct epoll_event event = events[i];
    events[i] = events[j];
    events[j] = event;
  }
  return count;
}

// --- For the test -------------------------------------------------------------------------------------------------

#define MAX_ARGUMENTS 7

// The arguments are numbers, as many as the test passes. A mistake in it is not survived.
static void Numbers(napi_env env, napi_callback_info info, size_t count, double* out) {
  napi_value args[MAX_ARGUMENTS];
  size_t given = MAX_ARGUMENTS;
  if (napi_get_cb_info(env, info, &given, args, NULL, NULL) != napi_ok || given != count) abort();
  for (size_t i = 0; i < count; i++)
    if (napi_get_value_double(env, args[i], &out[i]) != napi_ok) abort();
}

static napi_value Number(napi_env env, double value) {
  napi_value result;
  if (napi_create_double(env, value, &result) != napi_ok) abort();
  return result;
}

static napi_value NumberArray(napi_env env, const double* values, size_t count) {
  napi_value array;
  if (napi_create_array_with_length(env, count, &array) != napi_ok) abort();
  for (size_t i = 0; i < count; i++)
    if (napi_set_element(env, array, i, Number(env, values[i])) != napi_ok) abort();
  return array;
}

// seed(number)
static napi_value Seed(napi_env env, napi_callback_info info) {
  double seed;
  Numbers(env, info, 1, &seed);
  pthread_mutex_lock(&mutex);
  random_state = ((uint64_t)seed + 1) * 0x9E3779B97F4A7C15;
  pthread_mutex_unlock(&mutex);
  return NULL;
}

// add(fd, writes, kind, errnum, rate, after, times): its number.
static napi_value Add(napi_env env, napi_callback_info info) {
  double args[7];
  Numbers(env, info, 7, args);
  struct stat stat;
  if (fstat((int)args[0], &stat) != 0 || rule_count == MAX_RULES) abort();
  pthread_mutex_lock(&mutex);
  rules[rule_count++] = (Rule){
    .dev = stat.st_dev,
    .ino = stat.st_ino,
    .writes = args[1] != 0,
    .kind = (int)args[2],
    .errnum = (int)args[3],
    .rate = args[4],
    .after = (uint64_t)args[5],
    .times = (uint64_t)args[6],
  };
  pthread_mutex_unlock(&mutex);
  atomic_store(&active, true);
  return Number(env, rule_count - 1);
}

// state(rule): [bytes, held, onMainThread, how often in read, readv, ...]
static napi_value State(napi_env env, napi_callback_info info) {
  double number;
  Numbers(env, info, 1, &number);
  double values[3 + kFunctions];
  pthread_mutex_lock(&mutex);
  const Rule* rule = &rules[(int)number];
  values[0] = (double)rule->bytes;
  values[1] = (double)rule->held;
  values[2] = (double)rule->on_main_thread;
  for (int i = 0; i < kFunctions; i++) values[3 + i] = (double)rule->injected[i];
  pthread_mutex_unlock(&mutex);
  return NumberArray(env, values, 3 + kFunctions);
}

// release(rule): what it holds.
static napi_value Release(napi_env env, napi_callback_info info) {
  double number;
  Numbers(env, info, 1, &number);
  pthread_mutex_lock(&mutex);
  rules[(int)number].held = 0;
  pthread_cond_broadcast(&released);
  pthread_mutex_unlock(&mutex);
  return NULL;
}

// reverseEvents(): epoll reports its events in the reverse order.
static napi_value ReverseEvents(napi_env env, napi_callback_info info) {
  Numbers(env, info, 0, NULL);
  atomic_store(&reverses, true);
  return NULL;
}

// clear(): no rules any more, and events in the order of the kernel. The rules must not hold anything.
static napi_value Clear(napi_env env, napi_callback_info info) {
  Numbers(env, info, 0, NULL);
  atomic_store(&reverses, false);
  pthread_mutex_lock(&mutex);
  rule_count = 0;
  atomic_store(&active, false);
  pthread_mutex_unlock(&mutex);
  return NULL;
}

// socketPair(): two connected Unix sockets that block, which Node has no way to make.
static napi_value SocketPair(napi_env env, napi_callback_info info) {
  Numbers(env, info, 0, NULL);
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) abort();
  const double values[] = { fds[0], fds[1] };
  return NumberArray(env, values, 2);
}

// isBlocking(fd)
static napi_value IsBlocking(napi_env env, napi_callback_info info) {
  double fd;
  Numbers(env, info, 1, &fd);
  return Number(env, (fcntl((int)fd, F_GETFL) & O_NONBLOCK) == 0);
}

NAPI_MODULE_INIT() {
  static const struct {
    const char* name;
    napi_callback callback;
  } kMethods[] = {
    { "seed", Seed },
    { "add", Add },
    { "state", State },
    { "release", Release },
    { "reverseEvents", ReverseEvents },
    { "clear", Clear },
    { "socketPair", SocketPair },
    { "isBlocking", IsBlocking },
  };
  for (size_t i = 0; i < sizeof(kMethods) / sizeof(*kMethods); i++) {
    const char* name = kMethods[i].name;
    napi_value function;
    if (napi_create_function(env, name, NAPI_AUTO_LENGTH, kMethods[i].callback, NULL, &function) != napi_ok ||
        napi_set_named_property(env, exports, name, function) != napi_ok) {
      abort();
    }
  }
  return exports;
}
