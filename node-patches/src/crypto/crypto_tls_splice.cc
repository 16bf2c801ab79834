#include "crypto/crypto_tls_splice.h"

#if HAVE_TLS_SPLICE

#include "async_wrap-inl.h"
#include "crypto/crypto_bio.h"
#include "crypto/crypto_tls_splice_endpoint.h"
#include "crypto/crypto_util.h"
#include "debug_utils-inl.h"
#include "env-inl.h"
#include "memory_tracker-inl.h"
#include "node_buffer.h"
#include "node_external_reference.h"
#include "stream_base-inl.h"
#include "util-inl.h"
#include "v8.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <limits>

namespace node {

using ncrypto::MarkPopErrorOnReturn;
using ncrypto::SSLPointer;
using v8::Array;
using v8::Context;
using v8::Float64Array;
using v8::FunctionCallbackInfo;
using v8::FunctionTemplate;
using v8::HandleScope;
using v8::Integer;
using v8::Isolate;
using v8::Local;
using v8::Number;
using v8::Object;
using v8::TryCatch;
using v8::Uint32;
using v8::Value;

namespace crypto {

namespace {

// The error of a TUN device that is gone, or was never there. libuv has no name
// for it.
#ifdef EBADFD
constexpr int kEBADFD = -EBADFD;
#else
constexpr int kEBADFD = 0;
#endif

// What libuv suggests to read from a stream at a time, in bytes.
constexpr size_t kLibuvReadSize = 64 * 1024;

// The indices of the array that readStats() fills, and the fields of
// tls_splice_stats that are there.
#define TLS_SPLICE_STATS(V)                                                    \
  V(kBytesIn, bytes_in)                                                        \
  V(kBytesOut, bytes_out)                                                      \
  V(kStallsIn, stalls_in)                                                      \
  V(kStallsOut, stalls_out)                                                    \
  V(kPeakBufferedIn, peak_buffered_in)                                         \
  V(kPeakBufferedOut, peak_buffered_out)                                       \
  V(kPacketsIn, packets_in)                                                    \
  V(kPacketsOut, packets_out)                                                  \
  V(kLargestPacketIn, largest_packet_in)                                       \
  V(kLargestPacketOut, largest_packet_out)                                     \
  V(kDropsIn, drops_in)                                                        \
  V(kDropsOut, drops_out)                                                      \
  V(kDropsEINVAL, drops_einval)                                                \
  V(kDropsEMSGSIZE, drops_emsgsize)                                            \
  V(kDropsECONNREFUSED, drops_econnrefused)                                    \
  V(kDropsEIO, drops_eio)                                                      \
  V(kDropsENOBUFS, drops_enobufs)                                              \
  V(kSuperPacketsIn, super_packets_in)                                         \
  V(kSuperPacketsOut, super_packets_out)                                       \
  V(kSuperPacketsRefused, super_packets_refused)                               \
  V(kCloseNotify, close_notify)

enum StatsIndex {
  kLastActivity,  // In milliseconds of the loop's clock.
#define V(index, field) index,
  TLS_SPLICE_STATS(V)
#undef V
};
constexpr int kStatsCount = kCloseNotify + 1;

// Keeps an SSL while the pump uses it, whatever OpenSSL's callbacks do.
SSLPointer KeepAlive(const SSLPointer& ssl) {
  SSL_up_ref(ssl.get());
  return SSLPointer(ssl.get());
}

bool IsLibuvStream(StreamBase* stream) {
  switch (stream->GetAsyncWrap()->provider_type()) {
    case AsyncWrap::PROVIDER_TCPWRAP:
    case AsyncWrap::PROVIDER_PIPEWRAP:
    case AsyncWrap::PROVIDER_TTYWRAP:
      return true;
    default:
      return false;
  }
}

// The stream of a handle that JS passes.
StreamBase* LibuvStreamOf(Local<Value> handle) {
  CHECK(handle->IsObject());
  StreamBase* stream = StreamBase::FromObject(handle.As<Object>());
  CHECK(IsLibuvStream(stream));
  return stream;
}

// Converts a limit from JS. A limit that is larger than any size_t limits
// nothing.
size_t LimitOf(Local<Value> value) {
  CHECK(value->IsNumber());
  return static_cast<size_t>(
      std::min(value.As<Number>()->Value(),
               static_cast<double>(std::numeric_limits<size_t>::max())));
}

// Finds the listener of a stream, which only a listener that is pushed onto it
// can tell.
class ListenerProbe : public StreamListener {
 public:
  StreamListener* Find(StreamBase* stream) {
    stream->PushStreamListener(this);
    StreamListener* listener = previous_listener_;
    stream->RemoveStreamListener(this);
    return listener;
  }
  uv_buf_t OnStreamAlloc(size_t) override { UNREACHABLE(); }
  void OnStreamRead(ssize_t, const uv_buf_t&) override { UNREACHABLE(); }
};

// The names of the events, TLS_SPLICE_ON_*, for Debug().
constexpr const char* kEventNames[] = {"TURN",
                                       "LOWER_READ",
                                       "LOWER_EOF",
                                       "LOWER_READ_FAILED",
                                       "LOWER_WRITE_FAILED",
                                       "LOWER_DRAINED",
                                       "SINK_READY",
                                       "SOURCE_READY",
                                       "LEAVE_SOURCE",
                                       "DECRYPT",
                                       "CYCLED",
                                       "STOP",
                                       "RELEASE",
                                       "RESUME",
                                       "GONE",
                                       "SOURCE_GAVE"};
static_assert(arraysize(kEventNames) == TLS_SPLICE_ON_SOURCE_GAVE + 1);

}  // namespace

// The methods that JS calls, and the functions that set them.
#define TLS_SPLICE_METHODS(V)                                                  \
  V(SetProtoMethod, "open", Open)                                              \
  V(SetProtoMethod, "join", Join)                                              \
  V(SetProtoMethod, "holdSink", Call<&TLSSplice::HoldSink>)                    \
  V(SetProtoMethod, "unholdSink", Call<&TLSSplice::UnholdSink>)                \
  V(SetProtoMethod, "start", Start)                                            \
  V(SetProtoMethod, "setStream", SetStream)                                    \
  V(SetProtoMethod, "stop", Call<&TLSSplice::Stop>)                            \
  V(SetProtoMethod, "leaveSource", Call<&TLSSplice::LeaveSource>)              \
  V(SetProtoMethod, "scheduleTurn", Call<&TLSSplice::ScheduleTurn>)            \
  V(SetProtoMethod, "shutdownEndpoint", Call<&TLSSplice::ShutdownEndpoint>)    \
  V(SetProtoMethod, "abandon", Call<&TLSSplice::Abandon>)                      \
  V(SetProtoMethod, "release", Release)                                        \
  V(SetProtoMethod, "resume", Resume)                                          \
  V(SetProtoMethod, "failBelow", Call<&TLSSplice::FailBelow>)                  \
  V(SetProtoMethodNoSideEffect, "readStats", ReadStats)                        \
  V(SetProtoMethodNoSideEffect, "getState", GetState)                          \
  V(SetProtoMethodNoSideEffect, "getFailure", GetFailure)                      \
  V(SetMethodNoSideEffect, "writeError", WriteError)                           \
  V(SetMethodNoSideEffect, "accessMode", AccessMode)                           \
  V(SetMethod, "emitRead", EmitRead)                                           \
  V(SetMethodNoSideEffect, "unflushed", Unflushed)                             \
  V(SetMethod, "flush", WaitForFlush)

template <void (TLSSplice::*method)()>
void TLSSplice::Call(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  (splice->*method)();
}

TLSSplice::TLSSplice(Environment* env, Local<Object> object)
    : HandleWrap(env,
                 object,
                 reinterpret_cast<uv_handle_t*>(&poll_),
                 AsyncWrap::PROVIDER_TLSSPLICE),
      endpoint_(std::make_unique<StreamEndpoint>(this)),
      connection_(std::make_shared<Connection>()),
      stats_(std::make_unique<tls_splice_stats>()) {
  stats_->struct_size = sizeof(*stats_);
  MarkAsUninitialized();
  // Before start() the garbage collector may take a splice that JS has lost.
  MakeWeak();
}

TLSSplice::~TLSSplice() {
  LeaveResuming();
  DetachAndStopReading(spliced_);
  FreePump();
}

void TLSSplice::MemoryInfo(MemoryTracker* tracker) const {
  tracker->TrackField("tls_wrap", tls_wrap_);
  tracker->TrackFieldWithSize("stats", sizeof(*stats_));
  tracker->TrackField("endpoint", endpoint_);
  size_t held;
  if (tls_splice_take_undelivered(pump_, nullptr, 0, &held) == TLS_SPLICE_OK)
    tracker->TrackFieldWithSize("held", held, "tls_splice");
}

void TLSSplice::New(const FunctionCallbackInfo<Value>& args) {
  CHECK(args.IsConstructCall());
  CHECK_EQ(tls_splice_abi_version(), TLS_SPLICE_ABI_VERSION);
  Environment* env = Environment::GetCurrent(args);
  new TLSSplice(env, args.This());
}

// open(fd, directions, highWaterMark, framing, maxPacketSize, autoClose): 0, a
// libuv error code, or one of TLS_SPLICE_E*. `fd` can be TLS_SPLICE_FD_NONE. A
// `maxPacketSize` of 0 is whatever the framing allows.
void TLSSplice::Open(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK_NULL(splice->pump_);
  CHECK(args[0]->IsInt32());
  CHECK(args[1]->IsUint32());
  CHECK(args[3]->IsUint32());
  CHECK(args[5]->IsBoolean());

  const int fd = args[0].As<v8::Int32>()->Value();
  tls_splice_config config{
      .struct_size = sizeof(config),
      .fd = fd,
      .directions = args[1].As<Uint32>()->Value(),
      .high_water_mark = LimitOf(args[2]),
      .framing = args[3].As<Uint32>()->Value(),
      .max_packet_size = LimitOf(args[4]),
  };
  int err = tls_splice_new(&config, &splice->pump_);
  if (err != TLS_SPLICE_OK) return args.GetReturnValue().Set(err);

  uv_loop_t* loop = splice->env()->event_loop();
  int poll_fd;
  err = tls_splice_poll_fd(splice->pump_, &poll_fd);
  if (poll_fd >= 0)
    splice->endpoint_ = std::make_unique<PollEndpoint>(splice, &splice->poll_);
  else if (fd != TLS_SPLICE_FD_NONE)
    splice->endpoint_ = std::make_unique<FileEndpoint>(splice);
  if (err == TLS_SPLICE_OK) {
    err = poll_fd < 0 ? uv_idle_init(loop, &splice->idle_)
                      : uv_poll_init(loop, &splice->poll_, poll_fd);
  }
  if (err != 0) {
    splice->FreePump();
    return args.GetReturnValue().Set(err);
  }
  splice->MarkAsInitialized();
  if (args[5]->IsTrue()) {
    // A Worker closes the descriptors that it manages when it exits, and must
    // not close this one. RemoveUnmanagedFd() may emit a warning, which the
    // user may have made to throw: then the descriptor stays the user's.
    TryCatch try_catch(splice->env()->isolate());
    splice->env()->RemoveUnmanagedFd(fd);
    if (try_catch.HasCaught()) {
      try_catch.ReThrow();
      return;
    }
    splice->Check(tls_splice_adopt_fd(splice->pump_, fd));
  }
  args.GetReturnValue().Set(0);
}

// join(splice): the endpoint of each of the two is the other one.
void TLSSplice::Join(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  TLSSplice* peer;
  ASSIGN_OR_RETURN_UNWRAP(&peer, args[0].As<Object>());
  auto endpoint = std::make_unique<JoinedEndpoint>(splice);
  auto endpoint_of_peer = std::make_unique<JoinedEndpoint>(peer);
  endpoint->Join(endpoint_of_peer.get());
  splice->endpoint_ = std::move(endpoint);
  peer->endpoint_ = std::move(endpoint_of_peer);
}

// holdSink(): the endpoint is not to be written to before unholdSink().
void TLSSplice::HoldSink() {
  endpoint_->Hold();
}

void TLSSplice::UnholdSink() {
  endpoint_->Unhold();
  if (spliced_ != 0) ScheduleTurn();
}

// start(tlsWrap, direction, chunks, stream): true, or false if the direction of
// the TLSWrap cannot be spliced. `chunks` are Uint8Arrays that go before all
// else in that direction; `stream` is the handle of a net.Socket, if that is
// the endpoint and is connected.
void TLSSplice::Start(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK(args[0]->IsObject());
  CHECK(args[1]->IsUint32());
  CHECK(args[2]->IsArray());

  TLSWrap* tls_wrap;
  ASSIGN_OR_RETURN_UNWRAP(&tls_wrap, args[0].As<Object>());
  const uint32_t direction = args[1].As<Uint32>()->Value();
  CHECK(direction == TLS_SPLICE_DECRYPT || direction == TLS_SPLICE_ENCRYPT);
  StreamBase* stream = nullptr;
  if (args[3]->IsObject()) stream = LibuvStreamOf(args[3]);
  if (!splice->TakeOver(tls_wrap, direction, stream))
    return args.GetReturnValue().Set(false);

  Environment* env = splice->env();
  Local<Array> chunks = args[2].As<Array>();
  for (uint32_t i = 0; i < chunks->Length(); i++) {
    Local<Value> chunk;
    if (!chunks->Get(env->context(), i).ToLocal(&chunk)) return;
    ArrayBufferViewContents<uint8_t> bytes(chunk);
    splice->Check(tls_splice_push_before(
        splice->pump_, direction, bytes.data(), bytes.length()));
  }
  // The stream below does not repeat an end that JS has seen.
  if (direction == TLS_SPLICE_DECRYPT && tls_wrap->eof_)
    splice->Tell(TLS_SPLICE_ON_LOWER_EOF);
  args.GetReturnValue().Set(true);
}

// setStream(stream): the endpoint is this handle of a net.Socket, which was not
// connected when a direction was started.
void TLSSplice::SetStream(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  splice->endpoint_->Begin(LibuvStreamOf(args[0]));
  splice->ScheduleTurn();
}

bool TLSSplice::TakeOver(TLSWrap* tls_wrap,
                         uint32_t direction,
                         StreamBase* stream) {
  const std::shared_ptr<Connection> connection = ConnectionOf(*tls_wrap);
  TLSSplice* in = connection ? connection->in : nullptr;
  const TLSSplice* out = connection ? connection->out : nullptr;
  const TLSSplice* holder = direction == TLS_SPLICE_DECRYPT ? in : out;
  // Between release() and resume() the TLSWrap still points to the splice that
  // was released, although JS has the direction.
  const bool is_taken = holder != nullptr && holder->IsSpliced(direction);
  if (IsHandleClosing() || !tls_wrap->ssl_ || is_taken ||
      tls_wrap->stream() == nullptr) {
    return false;
  }

  // The pump takes no call inside of another one.
  CHECK_EQ(depth_, 0);
  const TLSSplice* before = in != nullptr ? in : out;
  if (before == this) before = nullptr;
  if (before != nullptr) connection_ = connection;
  Check(tls_splice_start(
      pump_, direction, before != nullptr ? before->pump_ : nullptr));
  if (spliced_ == 0) {
    CHECK(!tls_wrap_);
    endpoint_->Begin(stream);
    ClearWeak();
    tls_wrap_.reset(tls_wrap);
    tls_wrap->stream()->PushStreamListener(this);
  }
  CHECK_EQ(tls_wrap_.get(), tls_wrap);
  spliced_ |= direction;
  // If another splice has been released and is yet to resume(), this splice
  // inherits the errors and ends that JS is to be told of.
  if (direction == TLS_SPLICE_DECRYPT && in != nullptr) {
    BaseObjectPtr<TLSSplice> strong_ref{in};
    in->LeaveResuming();
    if (in->IsHandleClosing()) in->FreePump();
  }
  SetSplice(tls_wrap, direction, this);
  last_activity_ = env()->GetNowUint64();
  // For what is buffered already there may be no event. The pump does not run
  // now, because this may be inside of a callback of the call that reads.
  ScheduleTurn();
  return true;
}

// stop(): asks both directions to stop. getState() says when they have stopped.
void TLSSplice::Stop() {
  if (spliced_ == 0) return;
  BaseObjectPtr<TLSSplice> strong_ref{this};
  endpoint_->Cancel();
  On(TLS_SPLICE_ON_STOP, IsLowerBusy());
}

// release(directions): gives directions back to the TLSWrap. Returns a Buffer
// with the cleartext that was not delivered, or undefined.
void TLSSplice::Release(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK(args[0]->IsUint32());
  const uint32_t directions = args[0].As<Uint32>()->Value() & splice->spliced_;
  splice->endpoint_->Release(directions);
  size_t len = 0;
  if ((directions & TLS_SPLICE_DECRYPT) != 0) {
    splice->Check(tls_splice_take_undelivered(splice->pump_, nullptr, 0, &len));
    // JS may have seen the peer's close_notify before the pump's first turn.
    splice->has_close_notify_ =
        splice->tls_wrap_->eof_ && splice->tls_wrap_->ssl_ &&
        (SSL_get_shutdown(splice->tls_wrap_->ssl_.get()) &
         SSL_RECEIVED_SHUTDOWN) != 0;
  }
  Local<Object> buffer;
  if (len > 0 && Buffer::New(splice->env()->isolate(), len).ToLocal(&buffer) &&
      splice->Check(tls_splice_take_undelivered(
          splice->pump_,
          reinterpret_cast<uint8_t*>(Buffer::Data(buffer)),
          len,
          &len))) {
    args.GetReturnValue().Set(buffer);
  }
  BaseObjectPtr<TLSWrap> tls_wrap = splice->tls_wrap_;
  for (const uint32_t direction : {TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT}) {
    if ((directions & direction) != 0)
      splice->Tell(TLS_SPLICE_ON_RELEASE, direction);
  }
  splice->DetachAndStopReading(directions);
  if ((directions & TLS_SPLICE_DECRYPT) != 0 && tls_wrap->ssl_) {
    // Until resume() the TLSWrap still finds this splice, which knows what JS
    // is yet to be told: when the TLSWrap is to decrypt, and when another
    // splice takes the direction over.
    splice->resuming_ = tls_wrap;
    splice->SetSplice(tls_wrap.get(), TLS_SPLICE_DECRYPT, splice);
  }
}

// resume(isLater): what OpenSSL holds, an error that it has reported,
// and the end of the stream below go to JS, which has what release() returned.
// If `isLater`, JS has yet to read that, and gets a turn of the loop for it.
void TLSSplice::Resume(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK(args[0]->IsBoolean());
  // JS may have started another splice when it was given the bytes.
  if (!splice->resuming_) return;
  if (args[0]->IsFalse()) return splice->ResumeNow();
  BaseObjectPtr<TLSSplice> strong_ref{splice};
  splice->env()->SetImmediate(
      [strong_ref](Environment* env) { strong_ref->ResumeNow(); });
}

void TLSSplice::ResumeNow() {
  if (!resuming_) return;
  BaseObjectPtr<TLSSplice> strong_ref{this};
  BaseObjectPtr<TLSWrap> tls_wrap = resuming_;
  HandleScope handle_scope(env()->isolate());
  Context::Scope context_scope(env()->context());
  InternalCallbackScope callback_scope(this);
  // The callback scope has called hooks of JS (async_hooks).
  if (!resuming_) return;
  // JS may have destroyed the SSL when ClearOut() had left the direction, so
  // that OnDestroySSL() was not called.
  if (!env()->can_call_into_js() || !tls_wrap->ssl_) return LeaveResuming();
  // The queue may have the error of another connection, which SSL_get_error()
  // would take for one of this connection.
  ERR_clear_error();
  if (GetPumpState().holds_tls_error) {
    tls_wrap->ClearOut();
    // What JS has written meanwhile was not sent, see IsFailing().
    if (tls_wrap->ssl_ && tls_wrap->current_write_) {
      tls_wrap->write_callback_scheduled_ = true;
      tls_wrap->InvokeQueued(UV_EPROTO);
    }
  } else {
    // ClearOut() and Absorb() may have left the direction, which another splice
    // may have taken over then.
    if (InOf(*tls_wrap) == this)
      SetSplice(tls_wrap.get(), TLS_SPLICE_DECRYPT, nullptr);
    tls_wrap->Cycle();
  }
  // JS may have started another splice meanwhile, which has the direction now.
  const bool is_owing = static_cast<bool>(resuming_);
  TLSSplice* next = InOf(*tls_wrap);
  if (next == this) next = nullptr;
  LeaveResuming();
  if (is_owing && tls_wrap->ssl_) {
    const tls_splice_actions actions =
        Tell(TLS_SPLICE_ON_RESUME, tls_wrap->eof_, tls_wrap.get());
    if (next != nullptr) {
      next->TakeOverEnd(actions);
    } else {
      RestoreReading(tls_wrap.get());
      HandOver(actions, tls_wrap.get());
    }
  }
  if (connection_->out != nullptr) connection_->out->NotifyOfChange();
  if (IsHandleClosing()) FreePump();
}

// Between release() and resume(), TLSWrap::ReadStart() does nothing. If JS has
// called it in that time, this calls it again.
void TLSSplice::RestoreReading(TLSWrap* tls_wrap) {
  Local<Value> reading;
  if (tls_wrap->object()
          ->Get(env()->context(),
                FIXED_ONE_BYTE_STRING(env()->isolate(), "reading"))
          .ToLocal(&reading) &&
      reading->IsTrue()) {
    tls_wrap->ReadStart();
  }
}

// Another splice has been ordered to tell JS of the end of the stream below,
// and this one has the direction now.
void TLSSplice::TakeOverEnd(const tls_splice_actions& actions) {
  const int status = LowerEnd(actions);
  if (status == 0) return;
  if ((actions.orders & TLS_SPLICE_ACTION_LOWER_WRITE_FAILED) != 0)
    FailTLS(status);
  else
    EndReading(status);
}

void TLSSplice::LeaveResuming() {
  if (!resuming_) return;
  if (connection_->in == this)
    SetSplice(resuming_.get(), TLS_SPLICE_DECRYPT, nullptr);
  resuming_.reset();
}

// failBelow(): the stream below is another TLSWrap, whose TLS session has
// failed. That TLSWrap tells only its own socket. To the splice, which reads
// from that TLSWrap, the failure is a read error.
void TLSSplice::FailBelow() {
  if (spliced_ == 0) return;
  BaseObjectPtr<TLSSplice> strong_ref{this};
  StreamBase* stream = lower();
  if (stream->GetAsyncWrap()->provider_type() == AsyncWrap::PROVIDER_TLSWRAP)
    static_cast<TLSWrap*>(stream)->EmitRead(UV_EPROTO);
}

// writeError(tlsWrap): the status of a write of the TLSWrap that has failed, or
// 0. A TLSWrap that has failed so does not write again, and so does not fail
// again.
void TLSSplice::WriteError(const FunctionCallbackInfo<Value>& args) {
  CHECK(args[0]->IsObject());
  TLSWrap* tls_wrap;
  ASSIGN_OR_RETURN_UNWRAP(&tls_wrap, args[0].As<Object>());
  args.GetReturnValue().Set(tls_wrap->write_error_);
}

// accessMode(fd): the directions that a descriptor is open for, or a libuv
// error code.
void TLSSplice::AccessMode(const FunctionCallbackInfo<Value>& args) {
  CHECK(args[0]->IsInt32());
  const int flags = fcntl(args[0].As<v8::Int32>()->Value(), F_GETFL);
  if (flags < 0)
    return args.GetReturnValue().Set(uv_translate_sys_error(errno));
  const int mode = flags & O_ACCMODE;
  int directions = 0;
  if (mode != O_RDONLY) directions |= TLS_SPLICE_DECRYPT;
  if (mode != O_WRONLY) directions |= TLS_SPLICE_ENCRYPT;
  args.GetReturnValue().Set(directions);
}

// unflushed(tlsWrap): how many bytes of ciphertext the stream below has yet to
// write.
void TLSSplice::Unflushed(const FunctionCallbackInfo<Value>& args) {
  CHECK(args[0]->IsObject());
  TLSWrap* tls_wrap;
  ASSIGN_OR_RETURN_UNWRAP(&tls_wrap, args[0].As<Object>());
  const size_t pending = tls_wrap->ssl_ ? BIO_pending(tls_wrap->enc_out_) : 0;
  args.GetReturnValue().Set(static_cast<double>(pending));
}

// emitRead(handle, bytes): gives cleartext that a splice did not deliver to the
// listener of a stream as if the stream had just read it. Returns how many
// bytes the listener has room for. The bytes were counted when they were read.
void TLSSplice::EmitRead(const FunctionCallbackInfo<Value>& args) {
  CHECK(args[0]->IsObject());
  CHECK(args[1]->IsUint8Array());
  StreamBase* stream = StreamBase::FromObject(args[0].As<Object>());
  CHECK_NOT_NULL(stream);
  BaseObjectPtr<AsyncWrap> strong_ref{stream->GetAsyncWrap()};
  const ArrayBufferViewContents<char> bytes(args[1]);
  StreamListener* listener = ListenerProbe().Find(stream);
  uv_buf_t buf = listener->OnStreamAlloc(bytes.length());
  const size_t len = std::min<size_t>(buf.len, bytes.length());
  args.GetReturnValue().Set(static_cast<uint32_t>(len));
  if (len == 0) return;
  memcpy(buf.base, bytes.data(), len);
  listener->OnStreamRead(len, buf);
}

// flush(tlsWrap, req): 0 if no ciphertext waits for the stream below, and a
// libuv error code if writing to that stream has failed. Otherwise 1: `req`
// completes as if it had written the ciphertext, and JS is to write nothing
// until then.
void TLSSplice::WaitForFlush(const FunctionCallbackInfo<Value>& args) {
  CHECK(args[0]->IsObject());
  CHECK(args[1]->IsObject());
  TLSWrap* tls_wrap;
  ASSIGN_OR_RETURN_UNWRAP(&tls_wrap, args[0].As<Object>());
  if (!tls_wrap->ssl_ || tls_wrap->current_write_ || IsFlushed(*tls_wrap))
    return args.GetReturnValue().Set(0);
  // If a splice has the other direction, it reports the failure once its
  // endpoint has the bytes that came before. Then `req` completes.
  const TLSSplice* in = InOf(*tls_wrap);
  const bool is_held = in != nullptr && in->GetPumpState().has_untold_lower_end;
  if (tls_wrap->write_error_ != 0 && !is_held)
    return args.GetReturnValue().Set(tls_wrap->write_error_);
  tls_wrap->current_write_.reset(
      tls_wrap->CreateWriteWrap(args[1].As<Object>())->GetAsyncWrap());
  if (is_held) return args.GetReturnValue().Set(1);
  tls_wrap->write_callback_scheduled_ = true;
  tls_wrap->EncOut();
  args.GetReturnValue().Set(1);
}

// readStats(array): fills a Float64Array with the counters.
void TLSSplice::ReadStats(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK(args[0]->IsFloat64Array());
  Local<Float64Array> array = args[0].As<Float64Array>();
  CHECK_EQ(array->Length(), kStatsCount);
  double* out = reinterpret_cast<double*>(
      static_cast<char*>(array->Buffer()->Data()) + array->ByteOffset());
  // Inside of a call into the pump, and when there is no pump any more, the
  // counters stay as they were.
  splice->CountBytes();
  const tls_splice_stats& stats = *splice->stats_;
#define V(index, field) out[index] = static_cast<double>(stats.field);
  TLS_SPLICE_STATS(V)
#undef V
  if (splice->has_close_notify_) out[kCloseNotify] = 1;
  out[kLastActivity] = static_cast<double>(splice->last_activity_);
}

// getState(): bits of State.
void TLSSplice::GetState(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  const tls_splice_state pump_state = splice->GetPumpState();
  uint32_t state = pump_state.outcome | splice->endpoint_->GetState();
  if (pump_state.has_write_failed) state |= kCutOff;
  // While a thread writes to a file, it is unknown how many of the bytes the
  // file will take.
  if ((state & kWriting) != 0) state &= ~kInStopped;
  if (splice->depth_ > 0) state |= kBusy;
  args.GetReturnValue().Set(state);
}

// getFailure(): [libuv error code, syscall] of the endpoint or of the stream
// below. If the code is 0, [0, syscall, direction, offset] says where packets
// are out of step. Undefined if the pump has panicked. Throws the error of
// OpenSSL if encryption has failed.
void TLSSplice::GetFailure(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  Environment* env = splice->env();
  Isolate* isolate = env->isolate();
  tls_splice_failure failure{};
  failure.struct_size = sizeof(failure);
  const int found = tls_splice_get_failure(splice->pump_, &failure);
  if (found == TLS_SPLICE_EPANIC) return;
  int err = splice->GetPumpState().write_error;
  bool is_write = true;
  if (err == 0 && found == TLS_SPLICE_OK) {
    if (failure.is_tls)
      return ThrowCryptoError(env, failure.tls_error, "SSL_write failed");
    err = uv_translate_sys_error(failure.errnum);
    is_write = failure.is_write;
  }
  Local<Value> result[] = {
      Integer::New(isolate, err),
      is_write ? FIXED_ONE_BYTE_STRING(isolate, "write")
               : FIXED_ONE_BYTE_STRING(isolate, "read"),
      Integer::NewFromUnsigned(isolate, failure.framing),
      Number::New(isolate, static_cast<double>(failure.offset)),
  };
  args.GetReturnValue().Set(Array::New(isolate, result, arraysize(result)));
}

bool TLSSplice::IsDirect() const {
  return IsLibuvStream(lower());
}

bool TLSSplice::DoubtEnd(ssize_t nread,
                         const uv_buf_t& buf,
                         std::optional<uint64_t>* doubted_in) const {
  if (nread != UV_EOF || buf.base != nullptr) return false;
  const uint64_t now = turn();
  const std::optional<uint64_t> before = std::exchange(*doubted_in, now);
  return !before || *before + 1 != now;
}

std::shared_ptr<TLSSplice::Connection> TLSSplice::ConnectionOf(
    const TLSWrap& tls_wrap) {
  TLSWrap::Splice* any = tls_wrap.splice_in_ != nullptr ? tls_wrap.splice_in_
                                                        : tls_wrap.splice_out_;
  return any != nullptr ? any->connection() : nullptr;
}

TLSSplice* TLSSplice::InOf(const TLSWrap& tls_wrap) {
  if (tls_wrap.splice_in_ == nullptr) return nullptr;
  return tls_wrap.splice_in_->connection()->in;
}

void TLSSplice::SetSplice(TLSWrap* tls_wrap,
                          uint32_t direction,
                          TLSSplice* splice) {
  if (direction == TLS_SPLICE_DECRYPT)
    tls_wrap->splice_in_ = connection_->in = splice;
  else
    tls_wrap->splice_out_ = connection_->out = splice;
}

void TLSSplice::Detach(uint32_t directions) {
  if (directions == 0) return;
  CHECK(tls_wrap_);
  spliced_ &= ~directions;
  for (const uint32_t direction : {TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT}) {
    if ((directions & direction) == 0) continue;
    // While the pump is inside of a call into OpenSSL, it cannot give the BIO
    // back. The SSL keeps the BIO: JS gives a direction back inside of such a
    // call only if the socket is destroyed, and then OpenSSL reads and writes
    // nothing more.
    if (IsAttached(direction) && depth_ == 0 && tls_wrap_->ssl_)
      Check(tls_splice_detach(pump_, direction, tls_wrap_->ssl_.get()));
    attached_ &= ~direction;
    SetSplice(tls_wrap_.get(), direction, nullptr);
  }
  if ((directions & TLS_SPLICE_DECRYPT) != 0) reading_.reset();
  endpoint_->Release(directions);
  if (spliced_ == 0) {
    endpoint_->End();
    stream()->RemoveStreamListener(this);
    tls_wrap_.reset();
  } else {
    UpdateInterest();
  }
}

void TLSSplice::DetachAndStopReading(uint32_t directions) {
  StreamResource* lower = stream();
  const bool stop_reading = (directions & TLS_SPLICE_DECRYPT) != 0 &&
                            (GetPumpState().outcome & kInOver) == 0;
  Detach(directions);
  // This comes last, since a stream of JS is stopped by calling into JS.
  if (stop_reading) lower->ReadStop();
}

void TLSSplice::FreePump() {
  // A call into the pump, or a transfer, that is under way frees it at its end.
  if (depth_ > 0 || IsTransferring()) return;
  tls_splice_get_stats(pump_, stats_.get());
  // The pump knows what JS, or the next splice, is yet to be told.
  if (resuming_) {
    Check(tls_splice_close_endpoint(pump_));
    return;
  }
  // Nobody is left to be told if this panics.
  tls_splice_free(pump_);
  pump_ = nullptr;
}

void TLSSplice::Close(Local<Value> close_callback) {
  if (IsHandleClosing()) return;
  endpoint_->Close();
  for (const uint32_t direction : {TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT}) {
    if ((spliced_ & direction) != 0) Tell(TLS_SPLICE_ON_RELEASE, direction);
  }
  DetachAndStopReading(spliced_);
  // A handle that is referenced would be listed by its object, which is not
  // there any more after garbage collection.
  uv_unref(GetHandle());
  HandleWrap::Close(close_callback);
  if (turn_ != nullptr) {
    env()->CloseHandle(turn_, [](uv_idle_t* handle) { delete handle; });
    turn_ = nullptr;
  }
  // libuv is done with the file descriptor.
  FreePump();
}

void TLSSplice::OnDestroySSL() {
  BaseObjectPtr<TLSSplice> strong_ref{this};
  LeaveResuming();
  if (IsHandleClosing()) FreePump();
  if (spliced_ == 0) return;
  // JS has destroyed the SSL itself, and therefore knows. But the user may have
  // removed what would have told the splice.
  Tell(TLS_SPLICE_ON_GONE);
  DetachAndStopReading(spliced_);
  if (env()->can_call_into_js()) NotifyOfChange();
}

void TLSSplice::OnStreamDestroy() {
  // The destructor of the stream calls this: ReadStop(), a virtual method, is
  // gone.
  if (spliced_ == 0) return;
  Tell(TLS_SPLICE_ON_GONE);
  Detach(spliced_);
  if (env()->can_call_into_js()) NotifyOfChange();
}

uv_buf_t TLSSplice::OnStreamAlloc(size_t suggested_size) {
  // This is the top of the stack: the time to change what OpenSSL reads from.
  Attach(TLS_SPLICE_DECRYPT);
  if (!IsAttached(TLS_SPLICE_DECRYPT))
    return previous_listener_->OnStreamAlloc(suggested_size);
  tls_splice_buf buf;
  BeginTurn();
  Check(tls_splice_alloc(pump_, &buf));
  return uv_buf_init(reinterpret_cast<char*>(buf.base), buf.len);
}

void TLSSplice::OnStreamRead(ssize_t nread, const uv_buf_t& buf) {
  BaseObjectPtr<TLSSplice> strong_ref{this};
  BaseObjectPtr<TLSWrap> tls_wrap = tls_wrap_;
  // A TLSWrap ignores what follows the peer's close_notify, and so does a
  // splice that only sends.
  if (nread < 0 && tls_wrap->eof_ && !IsSpliced(TLS_SPLICE_DECRYPT))
    return previous_listener_->OnStreamRead(nread, buf);
  // read(2) can fail with ENOBUFS, too: then there is a buffer.
  const bool had_no_room = nread == UV_ENOBUFS && buf.len == 0;
  const bool is_ours = IsSpliced(TLS_SPLICE_DECRYPT);
  TLSSplice* in = InOf(*tls_wrap);
  const bool is_of_other = in != nullptr && in->IsSpliced(TLS_SPLICE_DECRYPT);
  // Only the splice that handles an end doubts it. If a splice that passes the
  // end on doubted it as well, neither would ever believe it.
  if ((is_ours || !is_of_other) && in != nullptr && IsDirect() &&
      DoubtEnd(nread, buf, &in->doubted_in_) && stream()->ReadStart() == 0) {
    return;
  }
  if (!is_ours && (nread >= 0 || had_no_room || is_of_other)) {
    previous_listener_->OnStreamRead(nread, buf);
  } else if (had_no_room) {
    // The pump has enough for this turn, and libuv goes on in the next one. Or
    // the buffer of the pump is full: this is before the first turn, or
    // somebody else has resumed the stream while the sink is full.
    if (GetPumpState().reading == TLS_SPLICE_READING_ON) return;
    reading_ = false;
    stream()->ReadStop();
    return;
  } else if (nread < 0) {
    if (IsAttached(TLS_SPLICE_DECRYPT)) Check(tls_splice_commit(pump_, 0));
    return EndReading(static_cast<int>(nread));
  } else if (IsAttached(TLS_SPLICE_DECRYPT)) {
    Check(tls_splice_commit(pump_, nread));
    if (nread == 0) return;
    on_top_ = true;
    tls_wrap->Cycle();
    on_top_ = false;
  } else {
    // Reading was stopped, and yet bytes have come: from a stream of JS that
    // had buffered them, or because somebody else has resumed the stream. So it
    // is unknown whether the stream is being read.
    if (reading_ == false) reading_.reset();
    previous_listener_->OnStreamRead(nread, buf);
    // A stream of JS that is resumed inside of TLSWrap::Cycle() may pass on all
    // that it has before any of it can be decrypted. Before the first turn any
    // stream may pass on as much as libuv reads at once.
    if ((spliced_ & TLS_SPLICE_DECRYPT) != 0 &&
        (tls_wrap->cycle_depth_ > 0 ||
         GetPumpState().reading == TLS_SPLICE_READING_AS_IT_IS)) {
      SetReading(false);
    }
  }
  if (spliced_ == 0 || nread <= 0) return;
  // The pump may encrypt, as in OnReady().
  Attach(TLS_SPLICE_ENCRYPT);
  On(TLS_SPLICE_ON_LOWER_READ, IsLowerBusy());
}

void TLSSplice::EndReading(int status) {
  if (IsSpliced(TLS_SPLICE_DECRYPT)) reading_ = false;
  if (status == UV_EOF)
    On(TLS_SPLICE_ON_LOWER_EOF);
  else
    On(TLS_SPLICE_ON_LOWER_READ_FAILED, status);
}

void TLSSplice::OnStreamAfterWrite(WriteWrap* w, int status) {
  BaseObjectPtr<TLSSplice> strong_ref{this};
  // If a write of JS fails, JS is told. If it was a write of the splice's
  // ciphertext, only the splice knows of it.
  const bool is_ours = (spliced_ & TLS_SPLICE_ENCRYPT) != 0 &&
                       !tls_wrap_->current_write_ && !tls_wrap_->shutdown_;
  previous_listener_->OnStreamAfterWrite(w, status);
  // The listener has called JS, which may have given the direction back, or
  // destroyed the socket.
  if (spliced_ != 0 && !IsDirect()) ScheduleTurn();
  if ((spliced_ & TLS_SPLICE_ENCRYPT) == 0) return;
  // A slow peer has taken bytes that OpenSSL may have accepted long ago: this,
  // too, is activity.
  if (status == 0) last_activity_ = env()->GetNowUint64();
  if (status != 0 && is_ours) FailTLS(status);
  if (spliced_ != 0 && !IsDirect()) On(TLS_SPLICE_ON_LOWER_DRAINED);
}

bool TLSSplice::IsFlushed(const TLSWrap& tls_wrap) {
  return tls_wrap.write_size_ == 0 && BIO_pending(tls_wrap.enc_out_) == 0;
}

void TLSSplice::OnDrain() {
  if (depth_ > 0 || is_flushing_ || (spliced_ & TLS_SPLICE_ENCRYPT) == 0 ||
      !tls_wrap_->ssl_) {
    return;
  }
  if (IsFlushed(*tls_wrap_))
    On(TLS_SPLICE_ON_LOWER_DRAINED);
  else
    UpdateInterest();
}

void TLSSplice::FailTLS(int err) {
  On(TLS_SPLICE_ON_LOWER_WRITE_FAILED, err);
}

tls_splice_state TLSSplice::GetPumpState() const {
  tls_splice_state state{};
  state.struct_size = sizeof(state);
  tls_splice_get_state(pump_, &state);
  return state;
}

bool TLSSplice::Check(int result) {
  if (result == TLS_SPLICE_EPANIC) NotifyOfChange();
  return result == TLS_SPLICE_OK;
}

// Whether the stream below takes no write now: this is inside of a write to it,
// or it is a stream of JS that has yet to complete an empty write. The pump is
// told with the events after which it may encrypt.
bool TLSSplice::IsLowerBusy() const {
  return is_flushing_ || (tls_wrap_->current_empty_write_ && !IsDirect());
}

void TLSSplice::On(uint32_t event, int value) {
  Apply(Tell(event, value));
}

uint64_t TLSSplice::turn() const {
  uv_metrics_t metrics;
  CHECK_EQ(uv_metrics_info(env()->event_loop(), &metrics), 0);
  return metrics.loop_count;
}

// What the splices of an event loop do in one turn of it is bounded. libuv
// counts a turn after it has called the idle handles, which are `ahead` then.
void TLSSplice::BeginTurn(uint64_t ahead) {
  Check(tls_splice_begin_turn(turn() + ahead));
}

tls_splice_actions TLSSplice::Tell(uint32_t event,
                                   int value,
                                   TLSWrap* tls_wrap) {
  tls_splice_actions actions{.struct_size = sizeof(actions),
                             .orders = 0,
                             .ssl_ret = 1,
                             .lower_error = 0};
  if (tls_wrap == nullptr) tls_wrap = tls_wrap_.get();
  if (pump_ == nullptr || !tls_wrap->ssl_) return actions;
  SSLPointer ssl = KeepAlive(tls_wrap->ssl_);
  BeginTurn();
  depth_++;
  const int result = tls_splice_on(pump_, event, value, ssl.get(), &actions);
  depth_--;
  Debug(this,
        "%s %d: orders 0x%x, SSL_read %d, lower error %d",
        kEventNames[event],
        value,
        actions.orders,
        actions.ssl_ret,
        actions.lower_error);
  Check(result);
  if (IsHandleClosing()) FreePump();
  return actions;
}

// Carries out what the pump orders, in the same order for all events. A step
// may run JS, which may end the splice: each step that follows looks for
// itself.
void TLSSplice::Apply(const tls_splice_actions& actions) {
  BaseObjectPtr<TLSSplice> strong_ref{this};
  if (spliced_ != 0 && depth_ == 0) CountBytes();
  if (actions.ssl_ret != 1) {
    // SSL_read() has failed, and TLSWrap::ClearOut() tells JS with what is in
    // the error queue. JS is not called before that: all other orders are left
    // to the next turn.
    NotifyOfChange();
    return ScheduleTurn();
  }
  // The TLSWrap may have failed to write something of its own, such as an
  // alert. TLSWrap does not report this failure, so the splice reports it.
  if ((spliced_ & TLS_SPLICE_ENCRYPT) != 0 && depth_ == 0 &&
      tls_wrap_->write_error_ != 0 && !GetPumpState().has_write_failed) {
    FailTLS(tls_wrap_->write_error_);
  }
  if ((actions.orders & TLS_SPLICE_ACTION_FLUSH) != 0) Flush();
  if ((actions.orders & TLS_SPLICE_ACTION_CYCLE) != 0) Cycle();
  if ((actions.orders & TLS_SPLICE_ACTION_CLOSE_NOTIFY) != 0) EmitEnd();
  HandOver(actions, tls_wrap_.get());
  if (spliced_ == 0) return NotifyOfChange();
  if ((actions.orders & TLS_SPLICE_ACTION_NEXT_TURN) != 0) ScheduleTurn();
  for (TLSSplice* other : {connection_->in, connection_->out}) {
    if (other == nullptr || other == this) continue;
    if ((actions.orders & TLS_SPLICE_ACTION_WAKE_OTHER) != 0)
      other->ScheduleTurn();
    other->NotifyOfChange();
  }
  // If another turn is ordered, that turn may need the buffers again.
  if ((actions.orders & TLS_SPLICE_ACTION_NEXT_TURN) == 0) FreeNodeBIOs();
  NotifyOfChange();
  UpdateInterest();
  // This comes last, since a stream of JS is started by calling into JS.
  UpdateReading();
}

void TLSSplice::UpdateInterest() {
  if (IsHandleClosing() || depth_ > 0 || spliced_ == 0) return;
  uint32_t interest = 0;
  if (tls_wrap_->ssl_)
    Check(tls_splice_begin_wait(pump_, tls_wrap_->ssl_.get(), &interest));
  endpoint_->Await(static_cast<int>(interest));
}

void TLSSplice::OnPoll(int events) {
  uint32_t ready;
  Check(tls_splice_ready(pump_, events, &ready));
  OnReady(ready);
}

void TLSSplice::OnReady(int events) {
  // A stream of JS below is written by calling into JS. If that were the
  // outermost call, JS would run its ticks inside of it, and an exception of a
  // tick would look like a failure of the write.
  std::optional<InternalCallbackScope> callback_scope;
  if (spliced_ != 0 && !IsDirect()) callback_scope.emplace(this);
  if ((events & UV_WRITABLE) != 0 && (spliced_ & TLS_SPLICE_DECRYPT) != 0) {
    on_top_ = true;
    On(TLS_SPLICE_ON_SINK_READY);
    on_top_ = false;
  }
  if ((events & UV_READABLE) != 0 && (spliced_ & TLS_SPLICE_ENCRYPT) != 0) {
    Attach(TLS_SPLICE_ENCRYPT);
    On(TLS_SPLICE_ON_SOURCE_READY, IsLowerBusy());
  }
  UpdateInterest();
}

void TLSSplice::Attach(uint32_t direction) {
  if (IsAttached(direction) || !IsSpliced(direction) || !tls_wrap_->ssl_ ||
      !IsDirect()) {
    return;
  }
  if (Check(tls_splice_attach(pump_, direction, tls_wrap_->ssl_.get())))
    attached_ |= direction;
}

tls_splice_transfer TLSSplice::BeginTransfer(int event) {
  tls_splice_transfer transfer{.struct_size = sizeof(transfer)};
  BeginTurn();
  Check(tls_splice_begin_transfer(
      pump_, tls_wrap_->ssl_.get(), event, &transfer));
  return transfer;
}

bool TLSSplice::EndTransfer(int event, ssize_t result) {
  return Check(tls_splice_end_transfer(pump_, event, result));
}

bool TLSSplice::IsTransferring() const {
  return (endpoint_->GetState() & kTransferring) != 0;
}

void TLSSplice::OnTransfer(int event) {
  if (!IsHandleClosing()) {
    // How much a stopped splice has delivered is known now.
    Notify();
    return OnReady(event);
  }
  FreePump();
  // JS has closed the splice, and only waits for this.
  if (!IsTransferring() && env()->can_call_into_js())
    MakeCallback(env()->onchange_string(), 0, nullptr);
}

bool TLSSplice::PassTo(TLSSplice* to) {
  if ((to->spliced_ & TLS_SPLICE_ENCRYPT) == 0 || !to->tls_wrap_->ssl_)
    return false;
  const int result =
      tls_splice_pass(pump_, to->pump_, to->tls_wrap_->ssl_.get());
  // A panic in this is one of both pumps.
  if (!Check(result)) {
    to->Check(result);
    return false;
  }
  if (on_top_ && to->IsDirect()) {
    to->Attach(TLS_SPLICE_ENCRYPT);
    to->On(TLS_SPLICE_ON_SOURCE_READY, to->IsLowerBusy());
  } else {
    // The other splice may be inside of a call into OpenSSL, or its stream
    // below may call into JS.
    to->On(TLS_SPLICE_ON_SOURCE_GAVE);
  }
  return (spliced_ & TLS_SPLICE_DECRYPT) != 0;
}

// leaveSource(): stops reading the endpoint, as if it had ended.
void TLSSplice::LeaveSource() {
  if ((spliced_ & TLS_SPLICE_ENCRYPT) != 0)
    return On(TLS_SPLICE_ON_LEAVE_SOURCE);
  // The direction is not started: nothing is to be done.
  tls_splice_actions none{.struct_size = sizeof(none)};
  Check(tls_splice_on(pump_, TLS_SPLICE_ON_LEAVE_SOURCE, 0, nullptr, &none));
}

// shutdownEndpoint(): ends the write side of a descriptor that is a socket, or
// the source of the other splice. A net.Socket is ended by JS itself.
void TLSSplice::ShutdownEndpoint() {
  endpoint_->Shutdown();
  Check(tls_splice_shutdown_write(pump_));
}

// abandon(): nobody waits any more for the transfers that are under way, which
// the system may never carry out. They keep the descriptor that the pump has
// made; the descriptor of the user is closed now, if the splice is to close it.
void TLSSplice::Abandon() {
  if (!IsTransferring()) return;
  endpoint_->Abandon();
  Check(tls_splice_adopt_fd(pump_, -1));
}

void TLSSplice::Flush() {
  if (is_flushing_ || spliced_ == 0 || !tls_wrap_->ssl_) return;
  BaseObjectPtr<TLSWrap> tls_wrap = tls_wrap_;
  MarkPopErrorOnReturn mark_pop_error_on_return;
  // A stream of JS is written by calling into JS, which may get here again.
  is_flushing_ = true;
  WriteCollected();
  if (tls_wrap->ssl_) tls_wrap->EncOut();
  is_flushing_ = false;
  if ((spliced_ & TLS_SPLICE_ENCRYPT) != 0 && tls_wrap->ssl_ &&
      IsFlushed(*tls_wrap)) {
    On(TLS_SPLICE_ON_LOWER_DRAINED);
  }
}

void TLSSplice::Cycle() {
  if (spliced_ == 0 || !tls_wrap_->ssl_) return;
  BaseObjectPtr<TLSWrap> tls_wrap = tls_wrap_;
  // A stream of JS that TLSWrap::Cycle() has resumed can get here from inside
  // of that. Then what came before has not been decrypted yet.
  if (tls_wrap->cycle_depth_ > 0) return ScheduleTurn();
  tls_wrap->Cycle();
  // TLSWrap::ClearOut() does nothing any more when JS has seen the end. What JS
  // had read before that is yet to go to the endpoint.
  if (tls_wrap->eof_ && tls_wrap->splice_in_ != nullptr && tls_wrap->ssl_) {
    MarkPopErrorOnReturn mark_pop_error_on_return;
    tls_wrap->splice_in_->ClearOut();
  }
  if (spliced_ != 0) On(TLS_SPLICE_ON_CYCLED, IsLowerBusy());
}

int TLSSplice::LowerEnd(const tls_splice_actions& actions) {
  const bool is_eof = (actions.orders & TLS_SPLICE_ACTION_LOWER_EOF) != 0;
  return is_eof ? UV_EOF : actions.lower_error;
}

void TLSSplice::HandOver(const tls_splice_actions& actions, TLSWrap* tls_wrap) {
  const int status = LowerEnd(actions);
  if (status == 0 || tls_wrap == nullptr) return;
  if ((actions.orders & TLS_SPLICE_ACTION_LOWER_WRITE_FAILED) != 0) {
    // The TLSWrap has no way to tell JS of a write that is not one of JS.
    if (!env()->can_call_into_js()) return;
    HandleScope handle_scope(env()->isolate());
    Local<Value> err = Integer::New(env()->isolate(), status);
    MakeCallback(env()->onerror_string(), 1, &err);
    return;
  }
  BaseObjectPtr<TLSWrap> strong_ref{tls_wrap};
  tls_wrap->OnStreamRead(status, uv_buf_init(nullptr, 0));
}

void TLSSplice::UpdateReading() {
  const uint32_t reading = GetPumpState().reading;
  if (reading != TLS_SPLICE_READING_AS_IT_IS)
    SetReading(reading == TLS_SPLICE_READING_ON);
}

// scheduleTurn(): asks for a turn, so that TLS can send its own messages. An
// empty write to the TLSWrap would also be an empty write to the stream below.
//
// SetImmediate() would not do, because a callback that is given to it inside of
// another one of its callbacks runs in the same turn.
void TLSSplice::ScheduleTurn() {
  if (IsHandleClosing()) return;
  if (turn_ == nullptr) {
    turn_ = new uv_idle_t;
    turn_->data = this;
    CHECK_EQ(uv_idle_init(env()->event_loop(), turn_), 0);
  }
  uv_idle_start(turn_, [](uv_idle_t* handle) {
    TLSSplice* splice = static_cast<TLSSplice*>(handle->data);
    BaseObjectPtr<TLSSplice> strong_ref{splice};
    Environment* env = splice->env();
    HandleScope handle_scope(env->isolate());
    Context::Scope context_scope(env->context());
    uv_idle_stop(handle);
    if (splice->spliced_ == 0 || !splice->tls_wrap_->ssl_) return;
    // See OnReady().
    std::optional<InternalCallbackScope> callback_scope;
    if (!splice->IsDirect()) callback_scope.emplace(splice);
    // The callback scope has called hooks of JS (async_hooks).
    if (splice->spliced_ == 0 || !splice->tls_wrap_->ssl_) return;
    splice->BeginTurn(1);
    splice->on_top_ = true;
    splice->On(TLS_SPLICE_ON_TURN);
    splice->on_top_ = false;
  });
}

// While a direction is spliced, and the stream below is one of libuv, the
// ciphertext of the direction goes past the NodeBIO, except for what a full
// network leaves. The NodeBIO would keep the buffers that it has had: 64 KiB
// for reading, as a rule, which is more than all else that an idle connection
// has. The next write to the NodeBIO allocates again.
//
// Nobody has a pointer into a NodeBIO that is freed here. From the time that
// the pump has its BIO, OnStreamAlloc() lends no memory of the NodeBIO for
// reading. Before that time, libuv may have asked for such memory and not have
// read into that memory yet: in between, libuv accepts a handle that comes over
// an IPC pipe, which calls hooks of JS (async_hooks). Ciphertext that libuv is
// writing stays in the NodeBIO until it is written.
void TLSSplice::FreeNodeBIOs() const {
  if (spliced_ == 0 || !tls_wrap_->ssl_ || !IsDirect()) return;
  if (IsAttached(TLS_SPLICE_DECRYPT)) {
    NodeBIO* enc_in = NodeBIO::FromBIO(tls_wrap_->enc_in_);
    enc_in->FreeIfEmpty();
    // After the splice, what libuv reads follows what the pump has given back.
    enc_in->set_initial(kLibuvReadSize);
  }
  if (IsSpliced(TLS_SPLICE_ENCRYPT))
    NodeBIO::FromBIO(tls_wrap_->enc_out_)->FreeIfEmpty();
}

int TLSSplice::ClearOut() {
  if (resuming_) {
    BaseObjectPtr<TLSSplice> strong_ref{this};
    BaseObjectPtr<TLSWrap> tls_wrap = resuming_;
    const bool is_failing = GetPumpState().holds_tls_error;
    SetSplice(tls_wrap.get(), TLS_SPLICE_DECRYPT, nullptr);
    if (is_failing)
      return Tell(TLS_SPLICE_ON_DECRYPT, 0, tls_wrap.get()).ssl_ret;
    tls_wrap->ClearOut();
    return 1;
  }
  // Inside of a callback of OpenSSL nothing can be read.
  if (depth_ > 0) return 1;
  return Decrypt();
}

bool TLSSplice::IsFailing() {
  return GetPumpState().holds_tls_error;
}

bool TLSSplice::Absorb(const char* data, size_t len) {
  if (resuming_) {
    // A callback has started and stopped this splice.
    SetSplice(resuming_.get(), TLS_SPLICE_DECRYPT, nullptr);
    return false;
  }
  Check(tls_splice_push_before(
      pump_, TLS_SPLICE_DECRYPT, reinterpret_cast<const uint8_t*>(data), len));
  tls_wrap_->bytes_read_ += len;
  return true;
}

int TLSSplice::Decrypt() {
  BaseObjectPtr<TLSSplice> strong_ref{this};
  SSLPointer ssl = KeepAlive(tls_wrap_->ssl_);
  tls_splice_actions actions;
  uint32_t orders = 0;
  do {
    actions = Tell(TLS_SPLICE_ON_DECRYPT);
    if ((spliced_ & TLS_SPLICE_DECRYPT) == 0) {
      NotifyOfChange();
      return 1;
    }
    orders |= actions.orders;
  } while ((actions.orders & TLS_SPLICE_ACTION_DELIVER) != 0 &&
           endpoint_->Deliver());
  if ((spliced_ & TLS_SPLICE_DECRYPT) == 0) return 1;
  if ((orders & TLS_SPLICE_ACTION_CLOSE_NOTIFY) != 0) {
    // TLSWrap::ClearOut() tells JS, unless the close_notify follows another
    // warning alert, such as user_canceled: then SSL_get_error() does not find
    // it.
    if (SSL_get_error(ssl.get(), actions.ssl_ret) == SSL_ERROR_ZERO_RETURN)
      orders &= ~TLS_SPLICE_ACTION_CLOSE_NOTIFY;
    else
      actions.ssl_ret = 1;
  }
  // TLSWrap::Cycle(), which has called this, flushes.
  actions.orders =
      orders & (TLS_SPLICE_ACTION_NEXT_TURN | TLS_SPLICE_ACTION_WAKE_OTHER |
                TLS_SPLICE_ACTION_CLOSE_NOTIFY);
  Apply(actions);
  return actions.ssl_ret;
}

void TLSSplice::EmitEnd() {
  if (spliced_ == 0 || tls_wrap_->eof_) return;
  tls_wrap_->eof_ = true;
  tls_wrap_->EmitRead(UV_EOF);
}

void TLSSplice::WriteCollected() {
  if (!IsAttached(TLS_SPLICE_ENCRYPT)) return;
  // TLSWrap::EncOut() would not write now, either.
  const bool must_wait = tls_wrap_->is_awaiting_new_session() ||
                         tls_wrap_->has_active_write_issued_by_prev_listener_;
  tls_splice_buf pieces[8];
  size_t count;
  while (
      Check(tls_splice_collected(pump_, pieces, arraysize(pieces), &count)) &&
      count > 0) {
    uv_buf_t bufs[arraysize(pieces)];
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
      bufs[i] =
          uv_buf_init(reinterpret_cast<char*>(pieces[i].base), pieces[i].len);
      total += pieces[i].len;
    }
    uv_buf_t* left = bufs;
    const int err = must_wait ? 0 : lower()->TryWrite(&left, &count);
    if (err != 0) {
      Check(tls_splice_written(pump_, total));
      return OnStreamAfterWrite(nullptr, err);
    }
    size_t written = total;
    for (size_t i = 0; i < count; i++) written -= left[i].len;
    Check(tls_splice_written(pump_, written));
    if (count > 0) Check(tls_splice_write_later(pump_));
  }
}

void TLSSplice::CountBytes() {
  const uint64_t in = stats_->bytes_decrypted;
  const uint64_t out = stats_->bytes_out;
  if (!Check(tls_splice_get_stats(pump_, stats_.get()))) return;
  if (in == stats_->bytes_decrypted && out == stats_->bytes_out) return;
  last_activity_ = env()->GetNowUint64();
  if (!tls_wrap_) return;
  tls_wrap_->bytes_read_ += stats_->bytes_decrypted - in;
  tls_wrap_->bytes_written_ += stats_->bytes_out - out;
}

void TLSSplice::SetReading(bool on) {
  // Unless 'in' is spliced, this is for JS to say.
  if ((spliced_ & TLS_SPLICE_DECRYPT) == 0 || on == reading_) return;
  reading_ = on;
  // These fail if the stream is closed or has failed, which the pump is told.
  if (on) {
    stream()->ReadStart();
  } else {
    stream()->ReadStop();
  }
}

void TLSSplice::NotifyOfChange() {
  const uint32_t outcome = GetPumpState().outcome;
  if (outcome == notified_outcome_) return;
  notified_outcome_ = outcome;
  Debug(this, "Outcome 0x%x", outcome);
  Notify();
}

void TLSSplice::Notify() {
  if (notify_scheduled_) return;
  notify_scheduled_ = true;
  BaseObjectPtr<TLSSplice> strong_ref{this};
  env()->SetImmediate([strong_ref](Environment* env) {
    strong_ref->notify_scheduled_ = false;
    if (strong_ref->IsHandleClosing() || !env->can_call_into_js()) return;
    HandleScope handle_scope(env->isolate());
    Context::Scope context_scope(env->context());
    strong_ref->MakeCallback(env->onchange_string(), 0, nullptr);
  });
}

void TLSSplice::Initialize(Environment* env, Local<Object> target) {
  Isolate* isolate = env->isolate();
  Local<Context> context = env->context();
  Local<FunctionTemplate> t = NewFunctionTemplate(isolate, New);
  t->InstanceTemplate()->SetInternalFieldCount(TLSSplice::kInternalFieldCount);
  t->Inherit(HandleWrap::GetConstructorTemplate(env));

#define V(Set, name, method) Set(isolate, t, name, method);
  TLS_SPLICE_METHODS(V)
#undef V
  SetConstructorFunction(context, target, "TLSSplice", t);

  Local<Object> constants = Object::New(isolate);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_DECRYPT);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_ENCRYPT);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FD_NONE);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_EACCMODE);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_ENOTSUP);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_EFRAMING);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_EVNETHDR);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_ENOPACKETS);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_AUTO);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_RAW);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_IP);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_IPV4);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_IPV6);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_U16BE);
  NODE_DEFINE_CONSTANT(constants, kEBADFD);
  NODE_DEFINE_CONSTANT(constants, kInOver);
  NODE_DEFINE_CONSTANT(constants, kOutOver);
  NODE_DEFINE_CONSTANT(constants, kInStopped);
  NODE_DEFINE_CONSTANT(constants, kOutStopped);
  NODE_DEFINE_CONSTANT(constants, kEndpointFailed);
  NODE_DEFINE_CONSTANT(constants, kTLSFailed);
  NODE_DEFINE_CONSTANT(constants, kTLSFailing);
  NODE_DEFINE_CONSTANT(constants, kBusy);
  NODE_DEFINE_CONSTANT(constants, kCutOff);
  NODE_DEFINE_CONSTANT(constants, kTransferring);
  NODE_DEFINE_CONSTANT(constants, kEndpointClosed);
  NODE_DEFINE_CONSTANT(constants, kEndpointEnded);
  NODE_DEFINE_CONSTANT(constants, kWriting);
  NODE_DEFINE_CONSTANT(constants, kWantsHandshake);
#define V(index, field) NODE_DEFINE_CONSTANT(constants, index);
  TLS_SPLICE_STATS(V)
#undef V
  NODE_DEFINE_CONSTANT(constants, kLastActivity);
  NODE_DEFINE_CONSTANT(constants, kStatsCount);
  target
      ->Set(
          context, FIXED_ONE_BYTE_STRING(isolate, "spliceConstants"), constants)
      .Check();
}

void TLSSplice::RegisterExternalReferences(
    ExternalReferenceRegistry* registry) {
  registry->Register(New);
#define V(Set, name, method) registry->Register(method);
  TLS_SPLICE_METHODS(V)
#undef V
}

}  // namespace crypto
}  // namespace node

#endif  // HAVE_TLS_SPLICE
