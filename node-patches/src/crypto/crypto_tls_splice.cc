#include "crypto/crypto_tls_splice.h"

#if HAVE_TLS_SPLICE

#include "async_wrap-inl.h"
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
using v8::Uint32;
using v8::Value;

namespace crypto {

namespace {

// Of a TUN device that is gone, or was never there. libuv has no name for it.
#ifdef EBADFD
constexpr int kEBADFD = -EBADFD;
#else
constexpr int kEBADFD = 0;
#endif

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

// For Debug().
const char* EventName(uint32_t event) {
  switch (event) {
#define V(name)                                                                \
  case TLS_SPLICE_ON_##name:                                                   \
    return #name;
    V(TURN)
    V(LOWER_READ)
    V(LOWER_EOF)
    V(LOWER_READ_FAILED)
    V(LOWER_WRITE_FAILED)
    V(LOWER_DRAINED)
    V(SINK_READY)
    V(SOURCE_READY)
    V(SOURCE_GAVE)
    V(LEAVE_SOURCE)
    V(DECRYPT)
    V(CYCLED)
    V(STOP)
    V(RELEASE)
    V(RESUME)
    V(GONE)
#undef V
  }
  return "unknown";
}

}  // namespace

TLSSplice::TLSSplice(Environment* env, Local<Object> object)
    : HandleWrap(env,
                 object,
                 reinterpret_cast<uv_handle_t*>(&poll_),
                 AsyncWrap::PROVIDER_TLSSPLICE),
      stats_(std::make_unique<tls_splice_stats>()) {
  stats_->struct_size = sizeof(*stats_);
  MarkAsUninitialized();
  // Until it is started, a splice is nothing but a file descriptor.
  MakeWeak();
}

TLSSplice::~TLSSplice() {
  LeaveResuming();
  Unjoin();
  Detach(spliced_);
  FreePump();
}

void TLSSplice::MemoryInfo(MemoryTracker* tracker) const {
  tracker->TrackField("tls_wrap", tls_wrap_);
  tracker->TrackFieldWithSize("stats", sizeof(*stats_));
  if (file_) tracker->TrackFieldWithSize("file", sizeof(*file_));
  if (endpoint_) tracker->TrackFieldWithSize("endpoint", sizeof(*endpoint_));
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

// open(fd, directions, highWaterMark, framing, autoClose): 0, a libuv error
// code, or one of TLS_SPLICE_E*. `fd` can be TLS_SPLICE_FD_NONE.
void TLSSplice::Open(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK_NULL(splice->pump_);
  CHECK(args[0]->IsInt32());
  CHECK(args[1]->IsUint32());
  CHECK(args[2]->IsNumber());
  CHECK(args[3]->IsUint32());
  CHECK(args[4]->IsBoolean());

  const int fd = args[0].As<v8::Int32>()->Value();
  // More than there are addresses is no limit.
  const double high_water_mark =
      std::min(args[2].As<Number>()->Value(),
               static_cast<double>(std::numeric_limits<size_t>::max()));
  tls_splice_config config{
      .struct_size = sizeof(config),
      .fd = fd,
      .directions = args[1].As<Uint32>()->Value(),
      .high_water_mark = static_cast<size_t>(high_water_mark),
      .framing = args[3].As<Uint32>()->Value(),
  };
  int err = tls_splice_new(&config, &splice->pump_);
  if (err != TLS_SPLICE_OK) return args.GetReturnValue().Set(err);

  uv_loop_t* loop = splice->env()->event_loop();
  int poll_fd;
  err = tls_splice_poll_fd(splice->pump_, &poll_fd);
  if (poll_fd < 0 && fd != TLS_SPLICE_FD_NONE)
    splice->file_ = std::make_unique<FileRequests>();
  if (err == TLS_SPLICE_OK) {
    err = poll_fd < 0 ? uv_idle_init(loop, &splice->idle_)
                      : uv_poll_init(loop, &splice->poll_, poll_fd);
  }
  if (err != 0) {
    splice->FreePump();
    return args.GetReturnValue().Set(err);
  }
  splice->MarkAsInitialized();
  if (args[4]->IsTrue() &&
      splice->Check(tls_splice_adopt_fd(splice->pump_, fd))) {
    // A Worker does not close it too when it exits.
    splice->env()->RemoveUnmanagedFd(fd);
  }
  args.GetReturnValue().Set(0);
}

// start(tlsWrap, direction, chunks, stream): true, or false if the TLSWrap is
// not able to. `chunks` are Uint8Arrays that go before all else in that
// direction; `stream` is the endpoint's handle if it has no file descriptor.
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
  TLSWrap::Splice*& slot = direction == TLS_SPLICE_DECRYPT
                               ? tls_wrap->splice_in_
                               : tls_wrap->splice_out_;
  TLSSplice* before = static_cast<TLSSplice*>(
      slot != nullptr ? slot
                      : direction == TLS_SPLICE_DECRYPT ? tls_wrap->splice_out_
                                                        : tls_wrap->splice_in_);
  // One that has given the direction back has it in name only.
  const bool is_taken = slot != nullptr && !before->resuming_;
  if (splice->IsHandleClosing() || !tls_wrap->ssl_ || is_taken ||
      tls_wrap->underlying_stream() == nullptr) {
    return args.GetReturnValue().Set(false);
  }

  // The pump takes no other call inside of one.
  CHECK_EQ(splice->depth_, 0);
  Environment* env = splice->env();
  splice->Check(tls_splice_start(splice->pump_,
                                 direction,
                                 before != nullptr && before != splice
                                     ? before->pump_
                                     : nullptr));
  Local<Array> chunks = args[2].As<Array>();
  for (uint32_t i = 0; i < chunks->Length(); i++) {
    Local<Value> chunk;
    if (!chunks->Get(env->context(), i).ToLocal(&chunk)) return;
    ArrayBufferViewContents<uint8_t> bytes(chunk);
    splice->Check(tls_splice_push_before(
        splice->pump_, direction, bytes.data(), bytes.length()));
  }

  if (splice->spliced_ == 0) {
    CHECK(!splice->tls_wrap_);
    if (args[3]->IsObject()) {
      StreamBase* stream = StreamBase::FromObject(args[3].As<Object>());
      CHECK(IsLibuvStream(stream));
      splice->endpoint_ = std::make_unique<EndpointStream>(splice, stream);
    }
    splice->ClearWeak();
    splice->tls_wrap_.reset(tls_wrap);
    splice->direct_ = IsLibuvStream(tls_wrap->underlying_stream());
    tls_wrap->underlying_stream()->PushStreamListener(splice);
  }
  CHECK_EQ(splice->tls_wrap_.get(), tls_wrap);
  splice->spliced_ |= direction;
  slot = splice;
  splice->last_activity_ = env->GetNowUint64();
  // JS has seen it.
  if (direction == TLS_SPLICE_DECRYPT && tls_wrap->eof_)
    splice->Tell(TLS_SPLICE_ON_LOWER_EOF);
  // No event may come for what is buffered already. Not now, though: this can
  // be a callback of the very call that is reading.
  splice->ScheduleTurn();
  args.GetReturnValue().Set(true);
}

// stop(): both directions. getState() says when they have.
void TLSSplice::Stop(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  if (splice->spliced_ == 0) return;
  BaseObjectPtr<TLSSplice> strong_ref{splice};
  splice->CancelTransfers();
  splice->On(TLS_SPLICE_ON_STOP, splice->IsLowerBusy());
}

// release(directions): give them back to the TLSWrap. Returns a Buffer with the
// cleartext that was not delivered, or undefined.
void TLSSplice::Release(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK(args[0]->IsUint32());
  const uint32_t directions = args[0].As<Uint32>()->Value() & splice->spliced_;
  if (splice->endpoint_ && (directions & TLS_SPLICE_DECRYPT) != 0)
    splice->endpoint_->Disown();
  size_t len = 0;
  if ((directions & TLS_SPLICE_DECRYPT) != 0)
    splice->Check(tls_splice_take_undelivered(splice->pump_, nullptr, 0, &len));
  if ((directions & TLS_SPLICE_DECRYPT) != 0) {
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
  // Last, since it calls into JS if the stream below is one of JS.
  splice->Detach(directions);
  if ((directions & TLS_SPLICE_DECRYPT) != 0 && tls_wrap->ssl_) {
    // Until resume(), whoever starts another one, or asks for cleartext, finds
    // what is still to be told.
    splice->resuming_ = tls_wrap;
    tls_wrap->splice_in_ = splice;
  }
}

// resume(tlsWrap, isLater): what OpenSSL holds, an error that it has reported,
// and the end of the stream below go to JS, which has what release() returned.
// If `isLater`, JS has yet to read that, and gets a turn of the loop for it.
void TLSSplice::Resume(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK(args[0]->IsObject());
  CHECK(args[1]->IsBoolean());
  TLSWrap* tls_wrap;
  ASSIGN_OR_RETURN_UNWRAP(&tls_wrap, args[0].As<Object>());
  // Another splice, started when JS was given the bytes, has taken it over.
  if (!splice->resuming_) return;
  if (args[1]->IsFalse()) return splice->ResumeNow();
  BaseObjectPtr<TLSSplice> strong_ref{splice};
  splice->env()->SetImmediate(
      [strong_ref](Environment* env) { strong_ref->ResumeNow(); });
}

// settle(tlsWrap): what resume() has left for later comes now, before JS looks
// at what it has read, and another splice takes that over.
void TLSSplice::Settle(const FunctionCallbackInfo<Value>& args) {
  CHECK(args[0]->IsObject());
  TLSWrap* tls_wrap;
  ASSIGN_OR_RETURN_UNWRAP(&tls_wrap, args[0].As<Object>());
  if (tls_wrap->splice_in_ != nullptr)
    static_cast<TLSSplice*>(tls_wrap->splice_in_)->ResumeNow();
}

void TLSSplice::ResumeNow() {
  if (!resuming_) return;
  BaseObjectPtr<TLSSplice> strong_ref{this};
  BaseObjectPtr<TLSWrap> tls_wrap = resuming_;
  HandleScope handle_scope(env()->isolate());
  Context::Scope context_scope(env()->context());
  // JS may be called with the error of another connection in the queue, which
  // SSL_get_error() would take for one of this.
  ERR_clear_error();
  if (GetPumpState().holds_tls_error) {
    tls_wrap->ClearOut();
    // JS may have written meanwhile, see IsFailing().
    if (tls_wrap->ssl_ && tls_wrap->current_write_) {
      tls_wrap->write_callback_scheduled_ = true;
      tls_wrap->InvokeQueued(UV_EPROTO);
    }
  } else {
    tls_wrap->splice_in_ = nullptr;
    tls_wrap->Cycle();
  }
  // Another splice may have taken over what is left.
  const bool is_over =
      resuming_ &&
      (tls_wrap->splice_in_ == nullptr || tls_wrap->splice_in_ == this);
  LeaveResuming();
  if (is_over && tls_wrap->ssl_) {
    // What JS has asked of the TLSWrap in between had no effect.
    Local<Value> reading;
    if (tls_wrap->object()
            ->Get(env()->context(),
                  FIXED_ONE_BYTE_STRING(env()->isolate(), "reading"))
            .ToLocal(&reading) &&
        reading->IsTrue()) {
      tls_wrap->ReadStart();
    }
    const int nread =
        LowerEnd(Tell(TLS_SPLICE_ON_RESUME, 0, tls_wrap.get()));
    if (nread != 0) tls_wrap->OnStreamRead(nread, uv_buf_init(nullptr, 0));
  }
  if (IsHandleClosing()) FreePump();
}

void TLSSplice::LeaveResuming() {
  if (resuming_ && resuming_->splice_in_ == this)
    resuming_->splice_in_ = nullptr;
  resuming_.reset();
}

// failBelow(): the stream below is another TLSWrap, whose TLS session has
// failed. That TLSWrap tells only its own socket. To the splice, which reads
// from that TLSWrap, the failure is a read error.
void TLSSplice::FailBelow(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  if (splice->spliced_ == 0) return;
  BaseObjectPtr<TLSSplice> strong_ref{splice};
  StreamBase* stream = static_cast<StreamBase*>(splice->stream());
  if (stream->GetAsyncWrap()->provider_type() == AsyncWrap::PROVIDER_TLSWRAP)
    static_cast<TLSWrap*>(stream)->EmitRead(UV_EPROTO);
}

// writeError(tlsWrap): that of a write of its own which failed when there was
// nobody to tell. It does not write any more, nor fail again.
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

// cycle(): let TLS send what it has to, in the next turn of the loop. An empty
// write to the TLSWrap would be one to the stream below as well.
void TLSSplice::RequestTurn(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  splice->ScheduleTurn();
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

// flush(tlsWrap, req): 0 if no ciphertext waits for the stream below, a libuv
// error code if it has failed. Otherwise 1: `req` completes as if it had
// written that, and nothing else is to be written until it does.
void TLSSplice::WaitForFlush(const FunctionCallbackInfo<Value>& args) {
  CHECK(args[0]->IsObject());
  CHECK(args[1]->IsObject());
  TLSWrap* tls_wrap;
  ASSIGN_OR_RETURN_UNWRAP(&tls_wrap, args[0].As<Object>());
  if (!tls_wrap->ssl_ || tls_wrap->current_write_ || IsFlushed(*tls_wrap))
    return args.GetReturnValue().Set(0);
  // A splice of the other direction reports the failure once its endpoint has
  // what came before. `req` completes with that.
  const TLSSplice* in = static_cast<TLSSplice*>(tls_wrap->splice_in_);
  const bool is_held =
      in != nullptr && in->GetPumpState().holds_lower_end;
  if (tls_wrap->write_error_ != 0 && !is_held)
    return args.GetReturnValue().Set(tls_wrap->write_error_);
  tls_wrap->current_write_.reset(
      tls_wrap->CreateWriteWrap(args[1].As<Object>())->GetAsyncWrap());
  if (is_held) return args.GetReturnValue().Set(1);
  tls_wrap->write_callback_scheduled_ = true;
  tls_wrap->EncOut();
  args.GetReturnValue().Set(1);
}

void TLSSplice::ReadStats(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK(args[0]->IsFloat64Array());
  Local<Float64Array> array = args[0].As<Float64Array>();
  CHECK_EQ(array->Length(), kStatsCount);
  double* out = reinterpret_cast<double*>(
      static_cast<char*>(array->Buffer()->Data()) + array->ByteOffset());
  // Inside a call into the pump, and after its end, it is what it was. After a
  // panic it is what it was then.
  tls_splice_get_stats(splice->pump_, splice->stats_.get());
  const tls_splice_stats& stats = *splice->stats_;
  out[kBytesIn] = static_cast<double>(stats.bytes_in);
  out[kBytesOut] = static_cast<double>(stats.bytes_out);
  out[kStallsIn] = static_cast<double>(stats.stalls_in);
  out[kStallsOut] = static_cast<double>(stats.stalls_out);
  out[kPeakBufferedIn] = static_cast<double>(stats.peak_buffered_in);
  out[kPeakBufferedOut] = static_cast<double>(stats.peak_buffered_out);
  out[kPacketsIn] = static_cast<double>(stats.packets_in);
  out[kPacketsOut] = static_cast<double>(stats.packets_out);
  out[kLargestPacketIn] = static_cast<double>(stats.largest_packet_in);
  out[kLargestPacketOut] = static_cast<double>(stats.largest_packet_out);
  out[kDropsIn] = static_cast<double>(stats.drops_in);
  out[kDropsOut] = static_cast<double>(stats.drops_out);
  out[kDropsEINVAL] = static_cast<double>(stats.drops_einval);
  out[kDropsEMSGSIZE] = static_cast<double>(stats.drops_emsgsize);
  out[kDropsECONNREFUSED] = static_cast<double>(stats.drops_econnrefused);
  out[kDropsEIO] = static_cast<double>(stats.drops_eio);
  out[kDropsENOBUFS] = static_cast<double>(stats.drops_enobufs);
  out[kCloseNotify] =
      stats.close_notify != 0 || splice->has_close_notify_ ? 1 : 0;
  out[kLastActivity] = static_cast<double>(splice->last_activity_);
}

void TLSSplice::GetState(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  uint32_t state = splice->GetPumpState().outcome;
  if (splice->is_endpoint_closed_) state |= kEndpointClosed;
  // How much of it is delivered is not known yet.
  if ((splice->transfers_ & UV_WRITABLE) != 0) state &= ~kInStopped;
  if (splice->depth_ > 0) state |= kBusy;
  if (splice->transfers_ != 0) state |= kTransferring;
  if ((splice->transfers_ & UV_WRITABLE) != 0) state |= kWriting;
  args.GetReturnValue().Set(state);
}

// getFailure(): [libuv error code, syscall] of the endpoint or of the stream
// below, or [0, '', direction, offset] of packets that are out of step.
// Undefined if the pump has panicked. Throws the error of OpenSSL if encryption
// failed.
void TLSSplice::GetFailure(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  Environment* env = splice->env();
  tls_splice_failure failure{};
  failure.struct_size = sizeof(failure);
  const int found = tls_splice_get_failure(splice->pump_, &failure);
  if (found == TLS_SPLICE_EPANIC) return;
  // A write that has failed, and waits to be reported, is not why the endpoint
  // has failed meanwhile.
  int err = (splice->GetPumpState().outcome & kTLSFailed) != 0
                ? splice->write_error_
                : 0;
  bool is_write = true;
  if (err == 0 && found == TLS_SPLICE_OK) {
    if (failure.is_tls) {
      return ThrowCryptoError(env, failure.tls_error, "SSL_write failed");
    }
    if (failure.framing != 0) {
      Local<Value> result[] = {
          Integer::New(env->isolate(), 0),
          v8::String::Empty(env->isolate()),
          Integer::NewFromUnsigned(env->isolate(), failure.framing),
          Number::New(env->isolate(), static_cast<double>(failure.offset)),
      };
      return args.GetReturnValue().Set(
          Array::New(env->isolate(), result, arraysize(result)));
    }
    err = uv_translate_sys_error(failure.errnum);
    is_write = failure.is_write;
  }
  Local<Value> result[] = {
      Integer::New(env->isolate(), err),
      is_write ? FIXED_ONE_BYTE_STRING(env->isolate(), "write")
               : FIXED_ONE_BYTE_STRING(env->isolate(), "read"),
  };
  args.GetReturnValue().Set(
      Array::New(env->isolate(), result, arraysize(result)));
}

void TLSSplice::Detach(uint32_t directions) {
  if (directions == 0) return;
  CHECK(tls_wrap_);
  StreamBase* stream = static_cast<StreamBase*>(this->stream());
  const bool stop_reading = (directions & TLS_SPLICE_DECRYPT) != 0 &&
                            !stream_destroyed_ &&
                            (GetPumpState().outcome & kInOver) == 0;
  spliced_ &= ~directions;
  if ((directions & TLS_SPLICE_DECRYPT) != 0) {
    // Inside a call into OpenSSL its BIO stays. That only happens when the SSL
    // is being destroyed, and the BIO goes with it.
    if (rbio_attached_ && depth_ == 0 && tls_wrap_->ssl_)
      Check(
          tls_splice_detach(pump_, TLS_SPLICE_DECRYPT, tls_wrap_->ssl_.get()));
    rbio_attached_ = false;
    reading_.reset();
    tls_wrap_->splice_in_ = nullptr;
  }
  if ((directions & TLS_SPLICE_ENCRYPT) != 0) {
    if (wbio_attached_ && depth_ == 0 && tls_wrap_->ssl_)
      Check(
          tls_splice_detach(pump_, TLS_SPLICE_ENCRYPT, tls_wrap_->ssl_.get()));
    wbio_attached_ = false;
    tls_wrap_->splice_out_ = nullptr;
  }
  if (endpoint_ && (directions & TLS_SPLICE_DECRYPT) != 0) endpoint_->Disown();
  if (endpoint_ && (directions & TLS_SPLICE_ENCRYPT) != 0)
    endpoint_->SetReading(false);
  if (spliced_ == 0) {
    if (poll_events_ != 0) uv_poll_stop(&poll_);
    poll_events_ = 0;
    CancelTransfers();
    endpoint_.reset();
    stream->RemoveStreamListener(this);
    tls_wrap_.reset();
  } else {
    UpdateInterest();
  }
  // Last, since it calls into JS if the stream is one of JS.
  if (stop_reading) stream->ReadStop();
}

void TLSSplice::FreePump() {
  // Whoever is in there does it, or the end of the transfer.
  if (depth_ > 0 || transfers_ != 0) return;
  // It knows what JS is still to be told.
  if (resuming_ && GetPumpState().owes) return;
  tls_splice_get_stats(pump_, stats_.get());
  // There is nobody left to tell that it has panicked.
  tls_splice_free(pump_);
  pump_ = nullptr;
}

void TLSSplice::Close(Local<Value> close_callback) {
  if (!IsHandleClosing()) {
    Unjoin();
    for (const uint32_t direction : {TLS_SPLICE_DECRYPT, TLS_SPLICE_ENCRYPT}) {
      if ((spliced_ & direction) != 0) Tell(TLS_SPLICE_ON_RELEASE, direction);
    }
    Detach(spliced_);
    // After garbage collection there is no object that it could be listed as.
    uv_unref(GetHandle());
    HandleWrap::Close(close_callback);
    if (turn_ != nullptr) {
      env()->CloseHandle(turn_, [](uv_idle_t* handle) { delete handle; });
      turn_ = nullptr;
    }
    // libuv is done with the file descriptor.
    FreePump();
  }
}

void TLSSplice::OnDestroySSL() {
  LeaveResuming();
  if (IsHandleClosing()) FreePump();
  if (spliced_ == 0) return;
  // JS knows, unless somebody has taken away what would have told it.
  Tell(TLS_SPLICE_ON_GONE);
  Detach(spliced_);
  if (env()->can_call_into_js()) NotifyOfChange();
}

void TLSSplice::OnStreamDestroy() {
  // From a destructor: its virtual methods are gone.
  stream_destroyed_ = true;
  if (spliced_ == 0) return;
  Tell(TLS_SPLICE_ON_GONE);
  Detach(spliced_);
  if (env()->can_call_into_js()) NotifyOfChange();
}

uv_buf_t TLSSplice::OnStreamAlloc(size_t suggested_size) {
  // This is the top of the stack: the time to change what OpenSSL reads from.
  if (direct_ && !rbio_attached_ && (spliced_ & TLS_SPLICE_DECRYPT) != 0) {
    rbio_attached_ = Check(
        tls_splice_attach(pump_, TLS_SPLICE_DECRYPT, tls_wrap_->ssl_.get()));
  }
  if (!rbio_attached_) return previous_listener_->OnStreamAlloc(suggested_size);
  tls_splice_buf buf;
  Check(tls_splice_alloc(pump_, &buf));
  return uv_buf_init(reinterpret_cast<char*>(buf.base), buf.len);
}

void TLSSplice::OnStreamRead(ssize_t nread, const uv_buf_t& buf) {
  BaseObjectPtr<TLSSplice> strong_ref{this};
  BaseObjectPtr<TLSWrap> tls_wrap = tls_wrap_;
  // read(2) can fail with that, too.
  const bool had_no_room = nread == UV_ENOBUFS && buf.len == 0;
  const bool is_ours = (spliced_ & TLS_SPLICE_DECRYPT) != 0;
  if (!is_ours && (nread >= 0 || had_no_room || tls_wrap->splice_in_ != nullptr)) {
    previous_listener_->OnStreamRead(nread, buf);
  } else if (had_no_room) {
    // Enough for this turn; libuv goes on in the next. Otherwise this is before
    // the first turn, or somebody else has resumed the stream while the sink is
    // full: the pump's buffer is full, too.
    if (GetPumpState().reading == TLS_SPLICE_READING_ON) return;
    reading_ = false;
    stream()->ReadStop();
    return;
  } else if (nread < 0) {
    if (rbio_attached_) Check(tls_splice_commit(pump_, 0));
    if (is_ours) reading_ = false;
    return nread == UV_EOF
               ? On(TLS_SPLICE_ON_LOWER_EOF)
               : On(TLS_SPLICE_ON_LOWER_READ_FAILED, static_cast<int>(nread));
  } else if (rbio_attached_) {
    Check(tls_splice_commit(pump_, nread));
    if (nread == 0) return;
    on_top_ = true;
    tls_wrap->Cycle();
    on_top_ = false;
  } else {
    // A stream of JS may pass on what it had before it was stopped, and
    // somebody else may have resumed it: whether it is being read is not known.
    if (reading_ == false) reading_.reset();
    previous_listener_->OnStreamRead(nread, buf);
    // One that is resumed inside of TLSWrap::Cycle() may pass on all that it
    // has, before any of that can be decrypted. So may one that reads before
    // the first turn, as much as libuv reads at once.
    if ((spliced_ & TLS_SPLICE_DECRYPT) != 0 &&
        (tls_wrap->cycle_depth_ > 0 ||
         GetPumpState().reading == TLS_SPLICE_READING_AS_IT_IS)) {
      SetReading(false);
    }
  }
  if (spliced_ != 0 && nread > 0)
    On(TLS_SPLICE_ON_LOWER_READ, IsLowerBusy());
}

void TLSSplice::OnStreamAfterWrite(WriteWrap* w, int status) {
  BaseObjectPtr<TLSSplice> strong_ref{this};
  // JS hears of its own write's failure; one of ours it would never hear of.
  const bool ours = (spliced_ & TLS_SPLICE_ENCRYPT) != 0 &&
                    !tls_wrap_->current_write_ && !tls_wrap_->shutdown_;
  previous_listener_->OnStreamAfterWrite(w, status);
  // That calls JS, which may have given the direction back, or destroyed the
  // socket.
  if ((spliced_ & TLS_SPLICE_ENCRYPT) == 0) return;
  if (status != 0 && ours) FailTLS(status);
  if (!direct_ && spliced_ != 0) On(TLS_SPLICE_ON_LOWER_DRAINED);
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
  BaseObjectPtr<TLSSplice> strong_ref{this};
  BaseObjectPtr<TLSSplice> in{
      static_cast<TLSSplice*>(tls_wrap_->splice_in_)};
  for (TLSSplice* splice : {this, in.get()}) {
    if (splice != nullptr && splice->write_error_ == 0)
      splice->write_error_ = err;
  }
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

// The events after which the outbound pump may run have a value: whether the
// stream below takes no write now, since this is inside of one, or since it is
// one of JS and has yet to complete an empty one.
bool TLSSplice::IsLowerBusy() const {
  return is_flushing_ || (!direct_ && tls_wrap_->current_empty_write_);
}

void TLSSplice::On(uint32_t event, int value) {
  Apply(Tell(event, value));
}

tls_splice_actions TLSSplice::Tell(uint32_t event,
                                   int value,
                                   TLSWrap* tls_wrap) {
  tls_splice_actions actions{
      .struct_size = sizeof(actions), .orders = 0, .ssl_ret = 1, .lower_error = 0};
  if (tls_wrap == nullptr) tls_wrap = tls_wrap_.get();
  if (pump_ == nullptr || !tls_wrap->ssl_) return actions;
  SSLPointer ssl = KeepAlive(tls_wrap->ssl_);
  depth_++;
  const int result =
      tls_splice_on(pump_, event, value, ssl.get(), &actions);
  depth_--;
  Debug(this,
        "%s %d: orders 0x%x, SSL_read %d, lower error %d; outcome 0x%x",
        EventName(event),
        value,
        actions.orders,
        actions.ssl_ret,
        actions.lower_error,
        GetPumpState().outcome);
  Check(result);
  if (IsHandleClosing()) FreePump();
  return actions;
}

// Carries out the orders, in the order of their bits. Each may run JS, which may
// end the splice.
void TLSSplice::Apply(const tls_splice_actions& actions) {
  BaseObjectPtr<TLSSplice> strong_ref{this};
  if (spliced_ != 0 && depth_ == 0) CountBytes();
  // A write that was not the splice's, and of which JS does not hear either.
  if ((spliced_ & TLS_SPLICE_ENCRYPT) != 0 && depth_ == 0 &&
      tls_wrap_->write_error_ != 0 && write_error_ == 0) {
    FailTLS(tls_wrap_->write_error_);
  }
  if ((actions.orders & TLS_SPLICE_ACTION_FLUSH) != 0) Flush();
  if ((actions.orders & TLS_SPLICE_ACTION_CYCLE) != 0) Cycle();
  if (const int nread = LowerEnd(actions); nread != 0) HandOver(nread);
  if (spliced_ == 0) return NotifyOfChange();
  if ((actions.orders & TLS_SPLICE_ACTION_NEXT_TURN) != 0) ScheduleTurn();
  for (TLSWrap::Splice* other : {tls_wrap_->splice_in_, tls_wrap_->splice_out_}) {
    if (other == nullptr || other == this) continue;
    TLSSplice* splice = static_cast<TLSSplice*>(other);
    if ((actions.orders & TLS_SPLICE_ACTION_WAKE_OTHER) != 0)
      splice->ScheduleTurn();
    splice->NotifyOfChange();
  }
  NotifyOfChange();
  UpdateInterest();
  // Last, since it calls into JS if the stream below is one of JS.
  UpdateReading();
}

void TLSSplice::Flush() {
  if (is_flushing_ || spliced_ == 0 || !tls_wrap_->ssl_) return;
  BaseObjectPtr<TLSWrap> tls_wrap = tls_wrap_;
  MarkPopErrorOnReturn mark_pop_error_on_return;
  // A stream of JS writes by calling into JS, which may ask for more.
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
  // A stream of JS can get here from inside of TLSWrap::Cycle(), when that
  // resumes it. Then what came before has not been decrypted yet.
  if (tls_wrap->cycle_depth_ > 0) return ScheduleTurn();
  tls_wrap->Cycle();
  // JS has seen the end already, and TLSWrap::ClearOut() does nothing any more.
  // What JS had read before goes to the endpoint.
  if (tls_wrap->eof_ && tls_wrap->splice_in_ != nullptr && tls_wrap->ssl_) {
    MarkPopErrorOnReturn mark_pop_error_on_return;
    static_cast<TLSSplice*>(tls_wrap->splice_in_)->ClearOut();
  }
  if (spliced_ != 0) On(TLS_SPLICE_ON_CYCLED, IsLowerBusy());
}

int TLSSplice::LowerEnd(const tls_splice_actions& actions) {
  if ((actions.orders & TLS_SPLICE_ACTION_LOWER_EOF) != 0) return UV_EOF;
  return actions.lower_error;
}

void TLSSplice::HandOver(int nread) {
  if (spliced_ == 0) return;
  // JS has seen that before the splice.
  if (nread == UV_EOF && tls_wrap_->eof_) return;
  BaseObjectPtr<TLSWrap> tls_wrap = tls_wrap_;
  tls_wrap->OnStreamRead(nread, uv_buf_init(nullptr, 0));
}

void TLSSplice::UpdateReading() {
  if (spliced_ == 0) return;
  switch (GetPumpState().reading) {
    case TLS_SPLICE_READING_ON:
      return SetReading(true);
    case TLS_SPLICE_READING_OFF:
      return SetReading(false);
  }
}

// Not SetImmediate(): what that is given while it runs, it runs at once.
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
    splice->Turn();
  });
}

void TLSSplice::Turn() {
  if (spliced_ == 0 || !tls_wrap_->ssl_) return;
  on_top_ = true;
  On(TLS_SPLICE_ON_TURN);
  on_top_ = false;
}

int TLSSplice::ClearOut() {
  if (resuming_) {
    BaseObjectPtr<TLSSplice> strong_ref{this};
    BaseObjectPtr<TLSWrap> tls_wrap = resuming_;
    const bool is_failing = GetPumpState().holds_tls_error;
    tls_wrap->splice_in_ = nullptr;
    if (is_failing)
      return Tell(TLS_SPLICE_ON_DECRYPT, 0, tls_wrap.get()).ssl_ret;
    tls_wrap->ClearOut();
    return 1;
  }
  // A callback of OpenSSL runs.
  if (depth_ > 0) return 1;
  return Decrypt();
}

bool TLSSplice::IsFailing() {
  return GetPumpState().holds_tls_error;
}

void TLSSplice::Absorb(const char* data, size_t len) {
  Check(tls_splice_push_before(
      pump_, TLS_SPLICE_DECRYPT, reinterpret_cast<const uint8_t*>(data), len));
  tls_wrap_->bytes_read_ += len;
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
  } while ((actions.orders & TLS_SPLICE_ACTION_DELIVER) != 0 && Deliver());
  if ((spliced_ & TLS_SPLICE_DECRYPT) == 0) return 1;
  waits_for_peer_ =
      joined_ && (actions.orders & TLS_SPLICE_ACTION_DELIVER) != 0;
  int ssl_ret = actions.ssl_ret;
  if ((orders & TLS_SPLICE_ACTION_CLOSE_NOTIFY) != 0 &&
      SSL_get_error(ssl.get(), ssl_ret) != SSL_ERROR_ZERO_RETURN) {
    EmitEnd();
    ssl_ret = 1;
    if ((spliced_ & TLS_SPLICE_DECRYPT) == 0) return 1;
  }
  // The queue is for TLSWrap::ClearOut() if there is something to be told. Then
  // JS is not called before that.
  actions.orders =
      orders & (TLS_SPLICE_ACTION_NEXT_TURN | TLS_SPLICE_ACTION_WAKE_OTHER);
  if (ssl_ret == 1) {
    Apply(actions);
  } else {
    CountBytes();
    NotifyOfChange();
    ScheduleTurn();
  }
  return ssl_ret;
}

// A close_notify that follows another warning alert, such as user_canceled, is
// none for SSL_get_error(), and so would not be the end for
// TLSWrap::ClearOut().
void TLSSplice::EmitEnd() {
  if (tls_wrap_->eof_) return;
  tls_wrap_->eof_ = true;
  tls_wrap_->EmitRead(UV_EOF);
}

void TLSSplice::WriteCollected() {
  if (!wbio_attached_) return;
  // As in TLSWrap::EncOut(), which would not write now.
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
    const int err =
        must_wait ? 0 : tls_wrap_->underlying_stream()->TryWrite(&left, &count);
    if (err != 0) {
      Check(tls_splice_written(pump_, total, true));
      return OnStreamAfterWrite(nullptr, err);
    }
    size_t written = total;
    for (size_t i = 0; i < count; i++) written -= left[i].len;
    Check(tls_splice_written(pump_, written, count == 0));
  }
}

void TLSSplice::CountBytes() {
  if (!Check(tls_splice_get_stats(pump_, stats_.get()))) return;
  const uint64_t in = stats_->bytes_decrypted;
  const uint64_t out = stats_->bytes_out;
  if (in == counted_in_ && out == counted_out_) return;
  tls_wrap_->bytes_read_ += in - counted_in_;
  tls_wrap_->bytes_written_ += out - counted_out_;
  counted_in_ = in;
  counted_out_ = out;
  last_activity_ = env()->GetNowUint64();
}

void TLSSplice::SetReading(bool on) {
  // Otherwise it is JS's to say.
  if ((spliced_ & TLS_SPLICE_DECRYPT) == 0 || on == reading_) return;
  reading_ = on;
  StreamBase* stream = static_cast<StreamBase*>(this->stream());
  // A stream that has ended says so again; there is nothing to do about it.
  if (on) {
    stream->ReadStart();
  } else {
    stream->ReadStop();
  }
}

void TLSSplice::NotifyOfChange() {
  const uint32_t outcome = GetPumpState().outcome;
  if (outcome == notified_outcome_) return;
  notified_outcome_ = outcome;
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

  SetProtoMethod(isolate, t, "open", Open);
  SetProtoMethod(isolate, t, "join", Join);
  SetProtoMethod(isolate, t, "holdSink", HoldSink);
  SetProtoMethod(isolate, t, "start", Start);
  SetProtoMethod(isolate, t, "stop", Stop);
  SetProtoMethod(isolate, t, "endOut", EndOut);
  SetProtoMethod(isolate, t, "cycle", RequestTurn);
  SetProtoMethod(isolate, t, "shutdownEndpoint", ShutdownEndpoint);
  SetProtoMethod(isolate, t, "abandon", Abandon);
  SetProtoMethod(isolate, t, "release", Release);
  SetProtoMethod(isolate, t, "resume", Resume);
  SetProtoMethod(isolate, t, "failBelow", FailBelow);
  SetProtoMethodNoSideEffect(isolate, t, "readStats", ReadStats);
  SetProtoMethodNoSideEffect(isolate, t, "getState", GetState);
  SetProtoMethodNoSideEffect(isolate, t, "getFailure", GetFailure);
  SetMethodNoSideEffect(isolate, t, "writeError", WriteError);
  SetMethodNoSideEffect(isolate, t, "accessMode", AccessMode);
  SetMethodNoSideEffect(isolate, t, "unflushed", Unflushed);
  SetMethod(isolate, t, "flush", WaitForFlush);
  SetMethod(isolate, t, "settle", Settle);
  SetConstructorFunction(context, target, "TLSSplice", t);

  Local<Object> constants = Object::New(isolate);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_DECRYPT);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_ENCRYPT);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FD_NONE);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_EACCMODE);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_ENOTSUP);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_EFRAMING);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_EVNETHDR);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_AUTO);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_RAW);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_IP);
  NODE_DEFINE_CONSTANT(constants, TLS_SPLICE_FRAMING_U16BE);
  NODE_DEFINE_CONSTANT(constants, kEBADFD);
  NODE_DEFINE_CONSTANT(constants, kInOver);
  NODE_DEFINE_CONSTANT(constants, kOutOver);
  NODE_DEFINE_CONSTANT(constants, kInStopped);
  NODE_DEFINE_CONSTANT(constants, kOutStopped);
  NODE_DEFINE_CONSTANT(constants, kFailed);
  NODE_DEFINE_CONSTANT(constants, kTLSFailed);
  NODE_DEFINE_CONSTANT(constants, kTLSFailing);
  NODE_DEFINE_CONSTANT(constants, kBusy);
  NODE_DEFINE_CONSTANT(constants, kTransferring);
  NODE_DEFINE_CONSTANT(constants, kEndpointClosed);
  NODE_DEFINE_CONSTANT(constants, kWriting);
  NODE_DEFINE_CONSTANT(constants, kWantsTLS);
  NODE_DEFINE_CONSTANT(constants, kBytesIn);
  NODE_DEFINE_CONSTANT(constants, kBytesOut);
  NODE_DEFINE_CONSTANT(constants, kStallsIn);
  NODE_DEFINE_CONSTANT(constants, kStallsOut);
  NODE_DEFINE_CONSTANT(constants, kPeakBufferedIn);
  NODE_DEFINE_CONSTANT(constants, kPeakBufferedOut);
  NODE_DEFINE_CONSTANT(constants, kPacketsIn);
  NODE_DEFINE_CONSTANT(constants, kPacketsOut);
  NODE_DEFINE_CONSTANT(constants, kLargestPacketIn);
  NODE_DEFINE_CONSTANT(constants, kLargestPacketOut);
  NODE_DEFINE_CONSTANT(constants, kDropsIn);
  NODE_DEFINE_CONSTANT(constants, kDropsOut);
  NODE_DEFINE_CONSTANT(constants, kDropsEINVAL);
  NODE_DEFINE_CONSTANT(constants, kDropsEMSGSIZE);
  NODE_DEFINE_CONSTANT(constants, kDropsECONNREFUSED);
  NODE_DEFINE_CONSTANT(constants, kDropsEIO);
  NODE_DEFINE_CONSTANT(constants, kDropsENOBUFS);
  NODE_DEFINE_CONSTANT(constants, kCloseNotify);
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
  registry->Register(Open);
  registry->Register(Join);
  registry->Register(HoldSink);
  registry->Register(Start);
  registry->Register(Stop);
  registry->Register(EndOut);
  registry->Register(RequestTurn);
  registry->Register(ShutdownEndpoint);
  registry->Register(Abandon);
  registry->Register(Release);
  registry->Register(Resume);
  registry->Register(FailBelow);
  registry->Register(WriteError);
  registry->Register(AccessMode);
  registry->Register(Unflushed);
  registry->Register(WaitForFlush);
  registry->Register(Settle);
  registry->Register(ReadStats);
  registry->Register(GetState);
  registry->Register(GetFailure);
}

}  // namespace crypto
}  // namespace node

#endif  // HAVE_TLS_SPLICE
