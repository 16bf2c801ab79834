#include "crypto/crypto_tls_splice_endpoint.h"

#if HAVE_TLS_SPLICE

#include "debug_utils-inl.h"
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
using v8::HandleScope;
using v8::Local;
using v8::Object;

namespace crypto {

void PollEndpoint::Await(int events) {
  const bool is_active =
      uv_is_active(reinterpret_cast<uv_handle_t*>(handle_)) != 0;
  if (events == (is_active ? events_ : 0)) return;
  events_ = events;
  if (events == 0) {
    uv_poll_stop(handle_);
  } else {
    uv_poll_start(handle_, events, OnPoll);
  }
}

void PollEndpoint::OnPoll(uv_poll_t* handle, int status, int events) {
  TLSSplice* splice =
      static_cast<TLSSplice*>(static_cast<HandleWrap*>(handle->data));
  Environment* env = splice->env();
  HandleScope handle_scope(env->isolate());
  Context::Scope context_scope(env->context());
  BaseObjectPtr<TLSSplice> strong_ref{splice};
  // At POLLERR libuv stops the handle; the next read or write gives the error.
  if (status < 0) {
    Debug(splice, "Polling has ended with %d", status);
    events = UV_READABLE | UV_WRITABLE;
  }
  splice->OnPoll(events);
}

void FileEndpoint::Await(int events) {
  for (const int event : {UV_READABLE, UV_WRITABLE}) {
    if ((events & event) != 0) BeginTransfer(event);
  }
}

void FileEndpoint::BeginTransfer(int event) {
  const tls_splice_transfer transfer = splice_->BeginTransfer(event);
  if (transfer.buf.len == 0) {
    // The splice has read enough in this turn of the event loop.
    if (event == UV_READABLE) splice_->ScheduleTurn();
    return;
  }
  transfers_ |= event;
  keep_alive_.reset(splice_);
  Debug(splice_, "Transfer %d of at most %zu bytes", event, transfer.buf.len);
  Environment* env = splice_->env();
  env->IncreaseWaitingRequestCounter();
  uv_fs_t* req = event == UV_READABLE ? &read_ : &write_;
  req->data = this;
  fd_ = transfer.fd;
  const uv_buf_t buf =
      uv_buf_init(reinterpret_cast<char*>(transfer.buf.base), transfer.buf.len);
  // A position of -1 stands for the position of the file, which the transfer
  // moves on: this is read(2) or write(2), on Linux and macOS alike. On macOS,
  // too, only regular files and devices that cannot be polled come here, and 0
  // bytes are their end. A utun device is a socket there: a read gives one
  // packet, and the device is polled.
  CHECK_EQ((event == UV_READABLE ? uv_fs_read : uv_fs_write)(
               env->event_loop(), req, fd_, &buf, 1, -1, OnTransfer),
           0);
}

void FileEndpoint::OnTransfer(uv_fs_t* req) {
  FileEndpoint* file = static_cast<FileEndpoint*>(req->data);
  TLSSplice* splice = file->splice_;
  BaseObjectPtr<TLSSplice> strong_ref{splice};
  Environment* env = splice->env();
  HandleScope handle_scope(env->isolate());
  Context::Scope context_scope(env->context());
  env->DecreaseWaitingRequestCounter();
  const int event = req == &file->read_ ? UV_READABLE : UV_WRITABLE;
  const ssize_t result = req->result;
  uv_fs_req_cleanup(req);
  file->transfers_ &= ~event;
  if (file->transfers_ == 0) file->keep_alive_.reset();
  // What was read too late is put back, if the file has a position.
  if (file->is_abandoned_ && event == UV_READABLE && result > 0)
    lseek(file->fd_, -result, SEEK_CUR);
  splice->EndTransfer(event, result);
  splice->OnTransfer(event);
}

void FileEndpoint::Cancel() {
  // This has no effect on a transfer that a thread has begun with.
  if ((transfers_ & UV_READABLE) != 0)
    uv_cancel(reinterpret_cast<uv_req_t*>(&read_));
  if ((transfers_ & UV_WRITABLE) != 0)
    uv_cancel(reinterpret_cast<uv_req_t*>(&write_));
}

void FileEndpoint::Abandon() {
  Debug(splice_, "Abandoning transfers %d", transfers_);
  is_abandoned_ = true;
}

uint32_t FileEndpoint::GetState() const {
  uint32_t state = 0;
  if (transfers_ != 0) state |= TLSSplice::kTransferring;
  if ((transfers_ & UV_WRITABLE) != 0) state |= TLSSplice::kWriting;
  return state;
}

void StreamEndpoint::Begin(StreamBase* stream) {
  if (stream != nullptr) stream->PushStreamListener(this);
}

void StreamEndpoint::Await(int events) {
  const bool is_source = (events & UV_READABLE) != 0;
  if (is_source == is_reading_ || stream_ == nullptr) return;
  is_reading_ = is_source;
  // A stream that is closing cannot be read; JS says that it has closed.
  if (is_source) {
    base()->ReadStart();
  } else {
    base()->ReadStop();
  }
}

bool StreamEndpoint::IsSource() const {
  return splice_->IsSpliced(TLS_SPLICE_ENCRYPT);
}

uv_buf_t StreamEndpoint::OnStreamAlloc(size_t suggested_size) {
  if (!IsSource()) return previous_listener_->OnStreamAlloc(suggested_size);
  const tls_splice_buf buf = splice_->BeginTransfer(UV_READABLE).buf;
  return uv_buf_init(reinterpret_cast<char*>(buf.base), buf.len);
}

void StreamEndpoint::OnStreamRead(ssize_t nread, const uv_buf_t& buf) {
  if (!IsSource()) return previous_listener_->OnStreamRead(nread, buf);
  if (nread == UV_ENOBUFS && buf.len == 0) {
    // The pump has enough for this turn, and libuv goes on in the next one. Or
    // somebody else has resumed the stream.
    if (!is_reading_) base()->ReadStop();
    return;
  }
  if (splice_->DoubtEnd(nread, buf, &doubted_in_) && base()->ReadStart() == 0) {
    return;
  }
  BaseObjectPtr<TLSSplice> strong_ref{splice_};
  // After an end or an error libuv has stopped.
  if (nread < 0) is_reading_ = false;
  if (nread == 0) nread = UV_EAGAIN;
  if (nread == UV_EOF) {
    has_ended_ = true;
    nread = 0;
  }
  splice_->EndTransfer(UV_READABLE, nread);
  if (nread != UV_EAGAIN) splice_->OnReady(UV_READABLE);
}

bool StreamEndpoint::Deliver() {
  if (is_held_ || stream_ == nullptr || pending_ != nullptr ||
      !base()->IsAlive() || base()->IsClosing()) {
    return false;
  }
  tls_splice_buf held = splice_->BeginTransfer(UV_WRITABLE).buf;
  if (held.len == 0) return false;
  uv_buf_t buf = uv_buf_init(reinterpret_cast<char*>(held.base), held.len);
  uv_buf_t* left = &buf;
  size_t count = 1;
  int err = base()->TryWrite(&left, &count);
  if (err == 0 && count > 0) {
    if (left->len < held.len) {
      splice_->EndTransfer(UV_WRITABLE, held.len - left->len);
      held = splice_->BeginTransfer(UV_WRITABLE).buf;
      if (held.len == 0) return false;
    }
    Debug(splice_, "The stream is full, and writes the next byte later");
    BaseObjectPtr<TLSSplice> strong_ref{splice_};
    is_writing_ = true;
    err = WriteByte(*held.base);
    // Hooks of JS that this has called may have ended the splice.
    if (err == 0 || !is_writing_) return false;
    is_writing_ = false;
    if (base()->IsClosing()) {
      splice_->EndTransfer(UV_WRITABLE, UV_ECANCELED);
      return false;
    }
  }
  splice_->EndTransfer(UV_WRITABLE, err == 0 ? held.len : err);
  return true;
}

// Leaves one byte to the stream: when it is written, there is room again. If a
// write of more bytes failed, nobody would know how many had been written.
int StreamEndpoint::WriteByte(uint8_t byte) {
  Environment* env = splice_->env();
  HandleScope handle_scope(env->isolate());
  std::unique_ptr<BackingStore> copy = ArrayBuffer::NewBackingStore(
      env->isolate(), 1, BackingStoreInitializationMode::kUninitialized);
  *static_cast<uint8_t*>(copy->Data()) = byte;
  uv_buf_t buf = uv_buf_init(static_cast<char*>(copy->Data()), 1);
  StreamWriteResult res =
      base()->Write(&buf, 1, nullptr, Local<Object>(), true);
  if (res.err != 0) return res.err;
  res.wrap->SetBackingStore(std::move(copy));
  if (is_writing_) pending_ = res.wrap;
  is_writing_ = false;
  return 0;
}

bool StreamEndpoint::WillCancelWrite() {
  if (!base()->IsClosing()) return false;
  if (is_writing_) return true;
  // libuv may have written the byte, and not said so yet.
  uv_stream_t* stream = static_cast<LibuvStreamWrap*>(base())->stream();
  return uv_stream_get_write_queue_size(stream) != 0;
}

void StreamEndpoint::EndWrite(ssize_t result) {
  if (pending_ == nullptr && !is_writing_) return;
  pending_ = nullptr;
  is_writing_ = false;
  splice_->EndTransfer(UV_WRITABLE, result);
}

void StreamEndpoint::OnStreamAfterWrite(WriteWrap* w, int status) {
  if (w != pending_) return previous_listener_->OnStreamAfterWrite(w, status);
  BaseObjectPtr<TLSSplice> strong_ref{splice_};
  EndWrite(status == 0 ? 1 : status);
  splice_->OnReady(UV_WRITABLE);
}

void StreamEndpoint::OnStreamDestroy() {
  Debug(splice_, "The stream of the endpoint is gone");
  EndWrite(UV_ECANCELED);
  is_reading_ = false;
  // If the handle has gone to another process, nothing else tells JS.
  is_closed_ = true;
  if (splice_->env()->can_call_into_js()) splice_->Notify();
}

void StreamEndpoint::Release(uint32_t directions) {
  // The splice does not wait any more for the byte that the stream has.
  if ((directions & TLS_SPLICE_DECRYPT) != 0)
    EndWrite(stream_ == nullptr || WillCancelWrite() ? UV_ECANCELED : 1);
  if ((directions & TLS_SPLICE_ENCRYPT) != 0) Await(0);
}

void StreamEndpoint::End() {
  is_reading_ = false;
  if (stream_ != nullptr) stream_->RemoveStreamListener(this);
}

uint32_t StreamEndpoint::GetState() const {
  uint32_t state = 0;
  if (is_closed_) state |= TLSSplice::kEndpointClosed;
  if (has_ended_) state |= TLSSplice::kEndpointEnded;
  return state;
}

void JoinedEndpoint::Join(JoinedEndpoint* peer) {
  CHECK_NE(this, peer);
  peer_ = peer;
  peer->peer_ = this;
}

void JoinedEndpoint::Await(int events) {
  // What the peer holds is taken now, or nobody is going to take it.
  if ((events & UV_READABLE) != 0 || splice_->IsOutOver()) WakePeer();
}

void JoinedEndpoint::WakePeer() {
  if (peer_ == nullptr || !peer_->waits_for_room_) return;
  Debug(splice_, "Waking the other splice");
  peer_->waits_for_room_ = false;
  peer_->splice_->ScheduleTurn();
}

bool JoinedEndpoint::Deliver() {
  if (peer_ != nullptr && !peer_->splice_->IsOutOver()) {
    waits_for_room_ = !splice_->PassTo(peer_->splice_);
    return !waits_for_room_;
  }
  // Nobody reads any more: a socket would fail with EPIPE.
  if (splice_->BeginTransfer(UV_WRITABLE).buf.len == 0) return false;
  return splice_->EndTransfer(UV_WRITABLE, UV_EPIPE);
}

void JoinedEndpoint::Shutdown() {
  if (peer_ != nullptr) peer_->splice_->LeaveSource();
}

void JoinedEndpoint::Close() {
  if (peer_ == nullptr) return;
  WakePeer();
  peer_->peer_ = nullptr;
  peer_ = nullptr;
}

}  // namespace crypto
}  // namespace node

#endif  // HAVE_TLS_SPLICE
