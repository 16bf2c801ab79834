#include "crypto/crypto_tls_splice.h"

#if HAVE_TLS_SPLICE

#include "env-inl.h"
#include "stream_base-inl.h"
#include "stream_wrap.h"
#include "util-inl.h"
#include "v8.h"

#include <unistd.h>

namespace node {

using v8::ArrayBuffer;
using v8::BackingStore;
using v8::BackingStoreInitializationMode;
using v8::Context;
using v8::FunctionCallbackInfo;
using v8::HandleScope;
using v8::Local;
using v8::Object;
using v8::Value;

namespace crypto {

void TLSSplice::UpdateInterest() {
  if (IsHandleClosing() || depth_ > 0 || spliced_ == 0) return;
  uint32_t interest = 0;
  if (tls_wrap_->ssl_)
    Check(tls_splice_begin_wait(pump_, tls_wrap_->ssl_.get(), &interest));
  const int events = static_cast<int>(interest);
  if (file_) return BeginTransfers(events);
  if (endpoint_) return endpoint_->SetReading((events & UV_READABLE) != 0);
  if (joined_) {
    if ((events & UV_READABLE) != 0 ||
        (GetPumpState().outcome & kOutOver) != 0)
      WakePeer();
    return;
  }
  if (events == poll_events_) return;
  poll_events_ = events;
  if (events == 0) {
    uv_poll_stop(&poll_);
  } else {
    uv_poll_start(&poll_, events, OnPoll);
  }
}

void TLSSplice::OnPoll(uv_poll_t* handle, int status, int events) {
  TLSSplice* splice = ContainerOf(&TLSSplice::poll_, handle);
  Environment* env = splice->env();
  HandleScope handle_scope(env->isolate());
  Context::Scope context_scope(env->context());
  BaseObjectPtr<TLSSplice> strong_ref{splice};
  // libuv stops at POLLERR; the next read or write says what it is.
  if (status < 0) {
    splice->poll_events_ = 0;
    events = UV_READABLE | UV_WRITABLE;
  }
  uint32_t ready;
  splice->Check(tls_splice_ready(splice->pump_, events, &ready));
  splice->OnReady(ready);
}

void TLSSplice::OnReady(int events) {
  if ((events & UV_WRITABLE) != 0 && (spliced_ & TLS_SPLICE_DECRYPT) != 0) {
    on_top_ = true;
    On(TLS_SPLICE_ON_SINK_READY);
    on_top_ = false;
  }
  if ((events & UV_READABLE) != 0 && (spliced_ & TLS_SPLICE_ENCRYPT) != 0) {
    AttachWbio();
    On(TLS_SPLICE_ON_SOURCE_READY, IsLowerBusy());
  }
  UpdateInterest();
}

void TLSSplice::AttachWbio() {
  if (!direct_ || wbio_attached_ || (spliced_ & TLS_SPLICE_ENCRYPT) == 0 ||
      !tls_wrap_->ssl_) {
    return;
  }
  wbio_attached_ = Check(
      tls_splice_attach(pump_, TLS_SPLICE_ENCRYPT, tls_wrap_->ssl_.get()));
}

bool TLSSplice::Deliver() {
  if (endpoint_) return !sink_held_ && endpoint_->Write();
  if (!joined_) return false;
  if (peer_ != nullptr && (peer_->GetPumpState().outcome & kOutOver) == 0)
    return PassToPeer();
  // As a socket whose other side does not read any more.
  tls_splice_transfer transfer{.struct_size = sizeof(transfer)};
  Check(tls_splice_begin_transfer(
      pump_, tls_wrap_->ssl_.get(), UV_WRITABLE, &transfer));
  if (transfer.buf.len == 0) return false;
  return Check(tls_splice_end_transfer(pump_, UV_WRITABLE, UV_EPIPE));
}

// endOut(): stop reading the source, as if it had ended.
void TLSSplice::EndOut(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  splice->EndSource();
}

void TLSSplice::EndSource() {
  if ((spliced_ & TLS_SPLICE_ENCRYPT) != 0)
    return On(TLS_SPLICE_ON_LEAVE_SOURCE);
  // The direction is not started: nothing is to be done.
  tls_splice_actions none{.struct_size = sizeof(none)};
  Check(
      tls_splice_on(pump_, TLS_SPLICE_ON_LEAVE_SOURCE, 0, nullptr, &none));
}

// shutdownEndpoint(): end the write side of a socket, or the source of the
// other splice. A net.Socket JS ends itself.
void TLSSplice::ShutdownEndpoint(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  if (splice->peer_ != nullptr) splice->peer_->EndSource();
  splice->Check(tls_splice_shutdown_write(splice->pump_));
}

void TLSSplice::BeginTransfers(int events) {
  for (const int event : {UV_READABLE, UV_WRITABLE}) {
    if ((events & event) == 0) continue;
    tls_splice_transfer transfer{.struct_size = sizeof(transfer)};
    Check(tls_splice_begin_transfer(
        pump_, tls_wrap_->ssl_.get(), event, &transfer));
    if (transfer.buf.len == 0) continue;
    transfers_ |= event;
    keep_alive_.reset(this);
    env()->IncreaseWaitingRequestCounter();
    uv_fs_t* req = event == UV_READABLE ? &file_->read : &file_->write;
    req->data = this;
    file_->fd = transfer.fd;
    const uv_buf_t buf = uv_buf_init(reinterpret_cast<char*>(transfer.buf.base),
                                     transfer.buf.len);
    // At the position of the file, which this moves on.
    CHECK_EQ(
        (event == UV_READABLE ? uv_fs_read : uv_fs_write)(
            env()->event_loop(), req, transfer.fd, &buf, 1, -1, OnTransfer),
        0);
  }
}

void TLSSplice::CancelTransfers() {
  // One that has begun is not cancelled; its end is waited for.
  if ((transfers_ & UV_READABLE) != 0)
    uv_cancel(reinterpret_cast<uv_req_t*>(&file_->read));
  if ((transfers_ & UV_WRITABLE) != 0)
    uv_cancel(reinterpret_cast<uv_req_t*>(&file_->write));
}

// abandon(): nobody waits for the transfers that are under way, which the
// system may never carry out. They keep the descriptor of our own; that of the
// caller is closed now, if it is to be.
void TLSSplice::Abandon(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  if (splice->transfers_ == 0) return;
  splice->abandoned_ = true;
  splice->Check(tls_splice_adopt_fd(splice->pump_, -1));
}

void TLSSplice::OnTransfer(uv_fs_t* req) {
  TLSSplice* splice = static_cast<TLSSplice*>(req->data);
  BaseObjectPtr<TLSSplice> strong_ref{splice};
  Environment* env = splice->env();
  HandleScope handle_scope(env->isolate());
  Context::Scope context_scope(env->context());
  env->DecreaseWaitingRequestCounter();
  const int event = req == &splice->file_->read ? UV_READABLE : UV_WRITABLE;
  splice->transfers_ &= ~event;
  if (splice->transfers_ == 0) splice->keep_alive_.reset();
  // What comes too late is put back, if that can be.
  if (splice->abandoned_ && event == UV_READABLE && req->result > 0)
    lseek(splice->file_->fd, -req->result, SEEK_CUR);
  splice->Check(tls_splice_end_transfer(splice->pump_, event, req->result));
  uv_fs_req_cleanup(req);
  if (splice->IsHandleClosing()) {
    splice->FreePump();
    if (splice->transfers_ == 0 && env->can_call_into_js())
      splice->MakeCallback(env->onchange_string(), 0, nullptr);
    return;
  }
  // The state says of what is written by a stopped splice when it is known.
  splice->Notify();
  splice->OnReady(event);
}

// join(splice): what one of the two decrypts the other encrypts.
void TLSSplice::Join(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  TLSSplice* peer;
  ASSIGN_OR_RETURN_UNWRAP(&peer, args[0].As<Object>());
  CHECK_NE(splice, peer);
  splice->peer_ = peer;
  peer->peer_ = splice;
  splice->joined_ = peer->joined_ = true;
}

void TLSSplice::WakePeer() {
  if (peer_ == nullptr || !peer_->waits_for_peer_) return;
  peer_->waits_for_peer_ = false;
  peer_->ScheduleTurn();
}

void TLSSplice::Unjoin() {
  if (peer_ == nullptr) return;
  WakePeer();
  peer_->peer_ = nullptr;
  peer_ = nullptr;
}

bool TLSSplice::PassToPeer() {
  TLSSplice* to = peer_;
  if ((to->spliced_ & TLS_SPLICE_ENCRYPT) == 0 || !to->tls_wrap_->ssl_)
    return false;
  const int result =
      tls_splice_pass(pump_, to->pump_, to->tls_wrap_->ssl_.get());
  // A panic is one of both.
  if (!Check(result)) {
    to->Check(result);
    return false;
  }
  if (on_top_ && to->direct_) {
    to->AttachWbio();
    to->On(TLS_SPLICE_ON_SOURCE_READY, to->IsLowerBusy());
  } else {
    // It may be in a call of OpenSSL's, or calls into JS.
    to->On(TLS_SPLICE_ON_SOURCE_GAVE);
  }
  return (spliced_ & TLS_SPLICE_DECRYPT) != 0;
}

// holdSink(on): whether the stream is not to be written to yet.
void TLSSplice::HoldSink(const FunctionCallbackInfo<Value>& args) {
  TLSSplice* splice;
  ASSIGN_OR_RETURN_UNWRAP(&splice, args.This());
  CHECK(args[0]->IsBoolean());
  splice->sink_held_ = args[0]->IsTrue();
  if (!splice->sink_held_ && splice->spliced_ != 0) splice->ScheduleTurn();
}

TLSSplice::EndpointStream::EndpointStream(TLSSplice* splice, StreamBase* stream)
    : splice_(splice) {
  stream->PushStreamListener(this);
}

void TLSSplice::EndpointStream::SetReading(bool on) {
  if (on == reading_ || stream_ == nullptr) return;
  reading_ = on;
  // One that is closing cannot be read; JS says that it has closed.
  if (on) {
    base()->ReadStart();
  } else {
    base()->ReadStop();
  }
}

bool TLSSplice::EndpointStream::IsSource() const {
  return (splice_->spliced_ & TLS_SPLICE_ENCRYPT) != 0;
}

uv_buf_t TLSSplice::EndpointStream::OnStreamAlloc(size_t suggested_size) {
  if (!IsSource()) return previous_listener_->OnStreamAlloc(suggested_size);
  tls_splice_transfer transfer{.struct_size = sizeof(transfer)};
  splice_->Check(tls_splice_begin_transfer(
      splice_->pump_, splice_->tls_wrap_->ssl_.get(), UV_READABLE, &transfer));
  return uv_buf_init(reinterpret_cast<char*>(transfer.buf.base),
                     transfer.buf.len);
}

void TLSSplice::EndpointStream::OnStreamRead(ssize_t nread,
                                             const uv_buf_t& buf) {
  if (!IsSource()) return previous_listener_->OnStreamRead(nread, buf);
  if (nread == UV_ENOBUFS && buf.len == 0) {
    // Enough for this turn; libuv goes on in the next. Or somebody else has
    // resumed the stream.
    if (!reading_) base()->ReadStop();
    return;
  }
  BaseObjectPtr<TLSSplice> strong_ref{splice_};
  // libuv has stopped.
  if (nread < 0) reading_ = false;
  if (nread == 0) nread = UV_EAGAIN;
  if (nread == UV_EOF) nread = 0;
  splice_->Check(tls_splice_end_transfer(splice_->pump_, UV_READABLE, nread));
  if (nread != UV_EAGAIN) splice_->OnReady(UV_READABLE);
}

bool TLSSplice::EndpointStream::Write() {
  if (stream_ == nullptr || pending_ != nullptr || !base()->IsAlive() ||
      base()->IsClosing()) {
    return false;
  }
  const auto begin = [this] {
    tls_splice_transfer transfer{.struct_size = sizeof(transfer)};
    splice_->Check(tls_splice_begin_transfer(splice_->pump_,
                                             splice_->tls_wrap_->ssl_.get(),
                                             UV_WRITABLE,
                                             &transfer));
    return transfer.buf;
  };
  const auto end = [this](ssize_t result) {
    splice_->Check(
        tls_splice_end_transfer(splice_->pump_, UV_WRITABLE, result));
  };
  tls_splice_buf held = begin();
  if (held.len == 0) return false;
  uv_buf_t buf = uv_buf_init(reinterpret_cast<char*>(held.base), held.len);
  uv_buf_t* left = &buf;
  size_t count = 1;
  int err = base()->TryWrite(&left, &count);
  if (err == 0 && count > 0) {
    if (left->len < held.len) {
      end(held.len - left->len);
      held = begin();
      if (held.len == 0) return false;
    }
    // Hooks of JS are called for that, and may have ended the splice.
    TLSSplice* splice = splice_;
    BaseObjectPtr<TLSSplice> strong_ref{splice};
    err = WriteByte(*held.base);
    if (err == 0 || splice->endpoint_.get() != this) return false;
    if (base()->IsClosing()) {
      end(UV_ECANCELED);
      return false;
    }
  }
  end(err == 0 ? held.len : err);
  return true;
}

int TLSSplice::EndpointStream::WriteByte(uint8_t byte) {
  Environment* env = splice_->env();
  HandleScope handle_scope(env->isolate());
  std::unique_ptr<BackingStore> copy = ArrayBuffer::NewBackingStore(
      env->isolate(), 1, BackingStoreInitializationMode::kUninitialized);
  *static_cast<uint8_t*>(copy->Data()) = byte;
  uv_buf_t buf = uv_buf_init(static_cast<char*>(copy->Data()), 1);
  TLSSplice* splice = splice_;
  is_writing_ = true;
  StreamWriteResult res =
      base()->Write(&buf, 1, nullptr, Local<Object>(), true);
  if (res.err == 0) res.wrap->SetBackingStore(std::move(copy));
  if (splice->endpoint_.get() != this) return res.err;
  is_writing_ = false;
  pending_ = res.wrap;
  return res.err;
}

void TLSSplice::EndpointStream::Disown() {
  EndWrite(stream_ == nullptr || WillCancelWrite() ? UV_ECANCELED : 1);
}

bool TLSSplice::EndpointStream::WillCancelWrite() {
  if (!base()->IsClosing()) return false;
  if (is_writing_) return true;
  // libuv may have written it, and not said so yet.
  uv_stream_t* stream = static_cast<LibuvStreamWrap*>(base())->stream();
  return uv_stream_get_write_queue_size(stream) != 0;
}

void TLSSplice::EndpointStream::EndWrite(ssize_t result) {
  if (pending_ == nullptr && !is_writing_) return;
  pending_ = nullptr;
  is_writing_ = false;
  splice_->Check(tls_splice_end_transfer(splice_->pump_, UV_WRITABLE, result));
}

void TLSSplice::EndpointStream::OnStreamAfterWrite(WriteWrap* w, int status) {
  if (w != pending_) return previous_listener_->OnStreamAfterWrite(w, status);
  BaseObjectPtr<TLSSplice> strong_ref{splice_};
  EndWrite(status == 0 ? 1 : status);
  splice_->OnReady(UV_WRITABLE);
}

void TLSSplice::EndpointStream::OnStreamDestroy() {
  EndWrite(UV_ECANCELED);
  reading_ = false;
  // JS does not hear of it if the handle has gone to another process.
  splice_->is_endpoint_closed_ = true;
  if (splice_->env()->can_call_into_js()) splice_->Notify();
}

}  // namespace crypto
}  // namespace node

#endif  // HAVE_TLS_SPLICE
