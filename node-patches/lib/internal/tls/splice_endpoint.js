'use strict';

// The endpoint of a splice: what may be one, and how it begins, is shut down, is given
// back and is closed. A FileHandle and a net.Socket have a class each, with the same
// methods as the class of all others. The words of the comments are explained in
// internal/tls/splice.

const {
  DataViewPrototypeGetBuffer, DataViewPrototypeGetByteLength, DataViewPrototypeGetByteOffset,
  Error, ObjectAssign, ObjectIsExtensible, ObjectKeys, PromiseWithResolvers, SafeWeakSet,
  Symbol, TypedArrayPrototypeGetBuffer, TypedArrayPrototypeGetByteLength,
  TypedArrayPrototypeGetByteOffset,
} = primordials;

const { closeSync } = require('fs');
const { Stream } = require('stream');
const net = require('net');
const { Buffer } = require('buffer');
const { FastBuffer } = require('internal/buffer');
const { clearTimeout, setImmediate, setTimeout } = require('timers');
const { getValidatedFd } = require('internal/fs/utils');
const { kTakeover } = require('internal/net');
const { getLazy, kEmptyObject } = require('internal/util');
const { isDataView } = require('internal/util/types');
const { kBoundSession, kSession } = require('internal/stream_base_commons');
const {
  Reader, Takeover, Writer, end, guarded,
  kLastMove, kOnClose, kOnConnect,
} = require('internal/tls/splice_takeover');
const {
  ErrnoException,
  codes: {
    ERR_INVALID_ARG_TYPE, ERR_INVALID_ARG_VALUE, ERR_INVALID_STATE, ERR_SOCKET_CLOSED,
    ERR_STREAM_PREMATURE_CLOSE,
  },
} = require('internal/errors');
const {
  isInt32,
  validateAbortSignal, validateBoolean, validateBuffer, validateInteger,
  validateObject, validateOneOf, validateString,
} = require('internal/validators');
const {
  // Windows has neither this class nor the constants.
  TLSSplice: NativeSplice,
  TLSWrap,
  spliceConstants: {
    TLS_SPLICE_DECRYPT: kIn,
    TLS_SPLICE_ENCRYPT: kOut,
    TLS_SPLICE_FRAMING_AUTO: auto,
    TLS_SPLICE_FRAMING_RAW: raw,
    TLS_SPLICE_FRAMING_IP: ip,
    TLS_SPLICE_FRAMING_IPV4: ipv4,
    TLS_SPLICE_FRAMING_IPV6: ipv6,
    TLS_SPLICE_FRAMING_U16BE: u16be,
    TLS_SPLICE_FD_NONE,
    TLS_SPLICE_EACCMODE,
    TLS_SPLICE_ENOTSUP,
    TLS_SPLICE_EFRAMING,
    TLS_SPLICE_EVNETHDR,
    TLS_SPLICE_ENOPACKETS,
    kEBADFD,
    kEndpointEnded,
  } = kEmptyObject,
} = internalBinding('tls_wrap');
const { Pipe } = internalBinding('pipe_wrap');
const { TCP } = internalBinding('tcp_wrap');
const { TTY } = internalBinding('tty_wrap');

const kDirections = { __proto__: null, in: kIn, out: kOut, duplex: kIn | kOut };
const kFramings = { __proto__: null, auto, raw, ip, ipv4, ipv6, u16be };
const kDefaultHighWaterMark = 256 * 1024;

// Few programs have a FileHandle, and its module is a large one.
const lazyFileHandle = getLazy(() => require('internal/fs/promises').FileHandle);

function isFileHandle(value) {
  return typeof value === 'object' && value !== null && !(value instanceof Stream) &&
         value instanceof lazyFileHandle();
}

// How long to wait for what may never come, in milliseconds.
const kStopTimeout = 2000;

const kNoNativeHandle = 'has no native handle; use pipe()';

// Methods of a TLSSplice, by which its endpoint tells what happens to the stream.
const kOnEndpointClose = Symbol('kOnEndpointClose');
const kOnEndpointConnect = Symbol('kOnEndpointConnect');

// What TLSSockets run over: the handles of sockets, and streams that JavaScript reads
// and writes.
const below = new SafeWeakSet();

// What error messages call a stream: `name` is an option of spliceTo(), or the argument of
// pipeToNative().
function nounOf(name) {
  return name === 'target' ? 'target' : 'stream';
}

function isNotOpenFor(direction) {
  return `is not open for direction '${direction}'`;
}

// Makes the error for a libuv error code of the endpoint. A device can have an error
// that libuv does not know.
function errorOf(err, syscall) {
  if (err !== kEBADFD)
    return new ErrnoException(err, syscall);
  const error = new Error(`EBADFD: file descriptor in bad state, ${syscall}`);
  return ObjectAssign(error, { errno: err, code: 'EBADFD', syscall });
}

// Checks that nobody but the user reads and writes a socket, and that a splice can put
// properties of its own on it.
function checkIsFree(socket, name) {
  if (socket[kSession] || socket[kBoundSession])
    throw new ERR_INVALID_STATE(`The ${name} is in use by an HTTP/2 session`);
  if (socket.parser)
    throw new ERR_INVALID_STATE(`The ${name} is in use by an HTTP parser`);
  // The bytes of the socket are then those of another TLS connection.
  if (below.has(socket._handle) || below.has(socket))
    throw new ERR_INVALID_STATE(`The ${name} is the transport of another TLSSocket`);
  if (!ObjectIsExtensible(socket))
    throw new ERR_INVALID_STATE(`The ${name} is not extensible`);
}

// Checks that a TLSSocket can be spliced. Error messages refer to it by `name`.
function checkSocket(socket, name) {
  if (socket.destroyed || !socket._handle)
    throw new ERR_SOCKET_CLOSED();
  // The socket may have been destroyed, and connected again without TLS.
  if (!(socket._handle instanceof TLSWrap))
    throw new ERR_INVALID_STATE(`The ${name} does not use TLS`);
  checkIsFree(socket, name);
}

// Checks that a stream without TLS can be an endpoint. Error messages refer to it by `name`.
function checkStream(stream, name) {
  if (stream.destroyed)
    throw new ERR_SOCKET_CLOSED();
  if (!stream._handle)
    throw new ERR_INVALID_STATE(`The ${nounOf(name)} is not connected`);
  const { _handle: handle } = stream;
  if (!(handle instanceof TCP || handle instanceof Pipe || handle instanceof TTY))
    throw new ERR_INVALID_ARG_VALUE(name, stream, kNoNativeHandle);
  if (stream.readableEncoding !== null)
    throw new ERR_INVALID_STATE(`setEncoding() has been called on the ${nounOf(name)}`);
  checkIsFree(stream, nounOf(name));
}

// Checks that a stream is open for the direction. It may be only readable or only
// writable: process.stdout is, and a socket made with `readable: false`, or one whose
// descriptor is an end of a pipe.
function checkDirection({ name, stream, direction }) {
  let able = kIn | kOut;
  if (stream._writableState.writable === false)
    able &= ~kIn;
  if (stream._readableState.readable === false)
    able &= ~kOut;
  const { _handle: handle } = stream;
  const { fd } = handle;
  // TCP is always open both ways. A TLSSocket over a stream of JavaScript has no
  // descriptor.
  if (!(handle instanceof TCP) && isInt32(fd) && fd >= 0) {
    const mode = NativeSplice.accessMode(fd);
    if (mode >= 0)
      able &= mode;
  }
  if (kDirections[direction] & ~able)
    throw new ERR_INVALID_ARG_VALUE(name, stream, isNotOpenFor(direction));
}

// Checks that the endpoint is not the TLS connection itself. Cleartext would be sent in
// place of ciphertext, or go round in circles.
function checkIsOther(socket, { name, fd, file, stream }) {
  if (stream === socket)
    throw new ERR_INVALID_ARG_VALUE(name, stream, 'is the socket itself');
  const runsOver = (stream, handle) => {
    let { _handle: below } = stream;
    while (below && below !== handle)
      below = below._parent;
    return !!below;
  };
  // A FileHandle that is closed and a stream of JavaScript both have -1.
  if ((fd === socket._handle.fd && fd !== -1) ||
      (stream !== undefined && runsOver(socket, stream._handle))) {
    throw new ERR_INVALID_ARG_VALUE(name, stream ?? file ?? fd,
                                    'is the transport of the TLS connection');
  }
  if (stream !== undefined && runsOver(stream, socket._handle))
    throw new ERR_INVALID_ARG_VALUE(name, stream, 'runs over the TLS connection');
}

// Validates what is to be the endpoint. Error messages refer to it by `name`. Returns `fd`, and
// for a FileHandle also the `file`; the `fd` of a FileHandle that has been closed is -1.
// validateStream() returns `stream` instead.
function validateFd(fd, name) {
  if (isFileHandle(fd)) {
    const { fd: number } = fd;
    const isClosed = number === -1;
    return { __proto__: null, name, fd: isClosed ? -1 : getValidatedFd(number, `${name}.fd`), file: fd };
  }
  if (typeof fd !== 'number')
    throw new ERR_INVALID_ARG_TYPE(name, ['number', 'FileHandle'], fd);
  return { __proto__: null, name, fd: getValidatedFd(fd, name) };
}

function validateStream(stream, name, types = ['net.Socket']) {
  if (stream instanceof net.Socket)
    return { __proto__: null, name, stream };
  throw stream instanceof Stream ?
    new ERR_INVALID_ARG_VALUE(name, stream, kNoNativeHandle) :
    new ERR_INVALID_ARG_TYPE(name, types, stream);
}

function validateTarget(target) {
  return typeof target === 'number' || isFileHandle(target) ?
    validateFd(target, 'target') :
    validateStream(target, 'target', ['number', 'FileHandle', 'net.Socket']);
}

// Validates the options of spliceTo(), and returns them with their defaults and the
// endpoint.
function validateOptions(socket, options) {
  validateObject(options, 'options');
  const { fd, stream } = options;
  if (fd !== undefined && stream !== undefined)
    throw new ERR_INVALID_ARG_VALUE('options.fd', fd, 'cannot be combined with options.stream');
  const endpoint = stream === undefined ?
    validateFd(fd, 'options.fd') : validateStream(stream, 'options.stream');
  return validateAll(socket, endpoint, options);
}

// Validates the arguments of pipeToNative(), and returns what validateOptions() does.
function validateArguments(socket, target, options) {
  const endpoint = validateTarget(target);
  validateObject(options, 'options');
  const { fd, stream } = options;
  if (fd !== undefined)
    throw new ERR_INVALID_ARG_VALUE('options.fd', fd, 'cannot be combined with target');
  if (stream !== undefined)
    throw new ERR_INVALID_ARG_VALUE('options.stream', stream, 'cannot be combined with target');
  return validateAll(socket, endpoint, options);
}

// Returns a Buffer with the memory of a typed array or a DataView, whatever properties of
// its own that has.
function bufferOf(view, name) {
  try {
    return isDataView(view) ?
      new FastBuffer(DataViewPrototypeGetBuffer(view), DataViewPrototypeGetByteOffset(view),
                     DataViewPrototypeGetByteLength(view)) :
      new FastBuffer(TypedArrayPrototypeGetBuffer(view), TypedArrayPrototypeGetByteOffset(view),
                     TypedArrayPrototypeGetByteLength(view));
  } catch {
    throw new ERR_INVALID_ARG_VALUE(name, view, 'has an ArrayBuffer that is detached or too short');
  }
}

// Arguments come first, in the order in which they are documented, and then the states of
// the sockets.
function validateAll(socket, endpoint, options) {
  const {
    direction = 'duplex',
    autoClose = false,
    end = true,
    framing = 'auto',
    maxPacketSize,
    head,
    highWaterMark = kDefaultHighWaterMark,
    signal,
  } = options;
  validateString(direction, 'options.direction');
  validateOneOf(direction, 'options.direction', ['in', 'out', 'duplex']);
  validateBoolean(autoClose, 'options.autoClose');
  validateBoolean(end, 'options.end');
  validateString(framing, 'options.framing');
  validateOneOf(framing, 'options.framing', ObjectKeys(kFramings));
  if (maxPacketSize !== undefined)
    validateInteger(maxPacketSize, 'options.maxPacketSize', 1);
  if (head !== undefined) {
    validateBuffer(head, 'options.head');
    if (direction === 'out') {
      throw new ERR_INVALID_ARG_VALUE('options.head', head,
                                      "cannot be combined with direction 'out'");
    }
  }
  validateInteger(highWaterMark, 'options.highWaterMark', 1);
  if (signal !== undefined)
    validateAbortSignal(signal, 'options.signal');
  const validated = {
    __proto__: null,
    ...endpoint,
    direction, autoClose, end, framing, maxPacketSize, highWaterMark, signal,
    head: head === undefined ? undefined : bufferOf(head, 'options.head'),
  };
  const { name, stream } = endpoint;
  if (socket._handle)
    checkIsOther(socket, validated);
  checkSocket(socket, 'socket');
  if (stream !== undefined) {
    if (stream.encrypted)
      checkSocket(stream, nounOf(name));
    else
      checkStream(stream, name);
    checkDirection(validated);
  }
  return validated;
}

// Opens the native side of a splice, which owns a duplicate of the descriptor, and with
// `autoClose` the descriptor itself unless that belongs to a FileHandle.
function openNative({
  name, fd, file, stream, direction, framing, maxPacketSize, highWaterMark, autoClose,
}) {
  const isFd = stream === undefined;
  const native = new NativeSplice();
  const err = native.open(isFd ? fd : TLS_SPLICE_FD_NONE, kDirections[direction],
                          highWaterMark, kFramings[framing], maxPacketSize ?? 0,
                          isFd && file === undefined && autoClose);
  if (err === 0)
    return native;
  if (err < 0)
    throw errorOf(err, 'open');
  if (err === TLS_SPLICE_EFRAMING)
    throw new ERR_INVALID_ARG_VALUE('options.framing', framing, 'does not fit the endpoint');
  if (err === TLS_SPLICE_ENOPACKETS) {
    throw new ERR_INVALID_ARG_VALUE('options.maxPacketSize', maxPacketSize,
                                    'needs a framing that has packets');
  }
  const reason = {
    __proto__: null,
    [TLS_SPLICE_EACCMODE]: isNotOpenFor(direction),
    [TLS_SPLICE_ENOTSUP]: 'is a kind of file or socket that cannot be spliced',
    [TLS_SPLICE_EVNETHDR]: 'is a device with IFF_VNET_HDR, which is supported only for TUN devices ' +
      'with IFF_NO_PI and a header of 10 or 12 bytes',
  }[err];
  if (reason === undefined)
    throw new ERR_INVALID_STATE(`The endpoint cannot be opened (error ${err})`);
  throw new ERR_INVALID_ARG_VALUE(name, stream ?? file ?? fd, reason);
}

// The endpoint of a splice. The native side deals with a file descriptor, and a TLSSocket
// has a splice of its own, so that there is little to do for those two here.
class Endpoint {
  stream;            // The socket that is the endpoint, or undefined.
  autoClose;         // The endpoint is closed by close() or closeNow().
  isClosed = false;  // The stream has emitted 'close', or never will; the file is closed.
  isDead = false;    // The operating system cannot read the stream any more.
  isAtEnd = false;   // The splice has read it to its end.
  isConnecting = false;  // A net.Socket was not connected when the splice was started.
  chunks = null;     // What JavaScript has read from it, until 'out' begins.
  splice;
  native;
  #isWatched = false;
  #isEnding = false;      // close() was called, which has called end() of the stream.
  #hasDestroyed = false;  // closeNow() was called.

  constructor(native, splice, { stream, autoClose }) {
    this.native = native;
    this.splice = splice;
    this.stream = stream;
    this.autoClose = autoClose && stream !== undefined;
  }

  // The handle of a net.Socket, which the native side reads and writes.
  get handle() {
    return undefined;
  }

  // A net.Socket that is destroyed has no handle, also before it emits 'close'.
  get isGone() {
    return false;
  }

  // The failure of a splice whose stream has closed early: the error that the stream was
  // destroyed with, or that it has closed.
  get closeError() {
    return this.stream.errored ?? new ERR_STREAM_PREMATURE_CLOSE();
  }

  // check() is called before the splice starts, and begin() when the handshake is done and
  // the stream is connected: both throw if the endpoint cannot be spliced. After unguard()
  // JavaScript may write to the stream again, and after giveBack() it has the stream again.
  check() {}
  begin() {}
  unguard() {}
  giveBack() {}

  // The splice has started.
  take() {
    if (this.stream === undefined)
      return;
    this.#isWatched = true;
    Takeover.watch(this.stream, this);
  }

  // The endpoint has all that the peer has sent, and is to see an end behind it.
  shutdown() {
    this.native.shutdownEndpoint();
  }

  // The splice has closed.
  unwatch() {
    if (this.stream !== undefined)
      Takeover.unwatch(this.stream, this);
  }

  get [kLastMove]() {
    return this.splice[kLastMove];
  }

  [kOnClose]() {
    this.isClosed = true;
    this.splice[kOnEndpointClose]();
  }

  // With `autoClose`: calls back when the stream has written everything.
  close(callback) {
    if (this.#isEnding || this.#hasDestroyed)
      return;
    this.#isEnding = true;
    end(this.stream, callback);
  }

  // With `autoClose`: closes the stream whatever it still has to write. Returns whether
  // its 'close' has to be waited for.
  closeNow() {
    const { stream } = this;
    if (!this.autoClose || this.#hasDestroyed)
      return false;
    this.#hasDestroyed = true;
    if (this.#isWatched || (!stream.destroyed && ObjectIsExtensible(stream)))
      Takeover.watch(stream, this);
    else  // The stream has emitted 'close', or does so in this turn of the event loop.
      setImmediate(() => setImmediate(() => this[kOnClose]()));
    guarded(() => stream.destroy());
    // The destroy() of process.stdout and the like does nothing.
    if (!stream.destroyed)
      this[kOnClose]();
    return !this.isClosed;
  }
}

// The endpoint that is a FileHandle, which closes the descriptor. The native side has a
// duplicate, so that the FileHandle may be closed at any time.
class FileHandleEndpoint extends Endpoint {
  #file;
  #isClosing = false;

  constructor(native, splice, options) {
    super(native, splice, options);
    this.#file = options.file;
    this.autoClose = options.autoClose;
  }

  close(callback) {
    callback();
  }

  closeNow() {
    if (!this.autoClose || this.#isClosing)
      return false;
    this.#isClosing = true;
    this.#close();
    return true;
  }

  async #close() {
    try {
      await this.#file.close();
    } catch {
      // The descriptor is closed in spite of the error.
    }
    this[kOnClose]();
  }
}

// The endpoint that is a net.Socket without TLS. The native side uses its handle.
class SocketEndpoint extends Endpoint {
  #name;
  #directions;
  #reader = null;
  #writer = null;

  constructor(native, splice, options) {
    super(native, splice, options);
    this.#name = options.name;
    this.#directions = kDirections[options.direction];
  }

  get handle() {
    return this.isConnecting ? undefined : this.stream._handle;
  }

  get isGone() {
    return this.stream.destroyed || !this.stream._handle;
  }

  check() {
    const takeover = this.stream[kTakeover];
    this.#checkOpen();
    if (this.#directions & kIn && takeover?.writer)
      throw new ERR_INVALID_STATE(`Another splice is already writing to the ${nounOf(this.#name)}`);
    if (this.#directions & kOut && takeover?.reader)
      throw new ERR_INVALID_STATE(`Another splice is already reading the ${nounOf(this.#name)}`);
  }

  #checkOpen() {
    checkStream(this.stream, this.#name);
    if (this.#directions & kIn && this.stream.writableEnded)
      throw new ERR_INVALID_STATE(`The ${nounOf(this.#name)} has already been ended`);
  }

  take() {
    super.take();
    this.isConnecting = this.stream.connecting;
    if (this.#directions & kIn) {
      this.#writer = new Writer(this.stream, this.splice, () => {
        if (this.splice.state === 'running')
          this.native.unholdSink();
      });
    }
    if (this.#directions & kOut)
      this.#reader = new Reader(this.stream, this.splice);
  }

  [kOnConnect]() {
    this.isConnecting = false;
    this.splice[kOnEndpointConnect]();
  }

  begin() {
    if (this.isGone)
      throw this.closeError;
    this.#checkOpen();
    // What JavaScript has written to the stream goes before what the peer sends.
    if (this.#writer?.isFlushed === false)
      this.native.holdSink();
    if (this.#reader !== null)
      this.chunks = this.#reader.take();
  }

  shutdown() {
    guarded(() => this.stream.end());
  }

  unguard() {
    this.#writer?.unguard();
  }

  // Both directions at once: a stream that sees its own end may close itself, and the
  // other direction with it.
  giveBack() {
    this.#reader?.detach();
    this.#writer?.detach();
    this.unguard();
    Takeover.restartIdleTime(this.stream);
    if (!this.#reader?.hasTaken)
      return;
    // JavaScript is to see the end that the splice has seen.
    this.#reader.isRead ||= this.isAtEnd;
    const chunks = this.chunks ?? [];
    const bytes = chunks.length > 1 ? Buffer.concat(chunks) : chunks[0];
    this.#reader.hasReadEnd = (this.native.getState() & kEndpointEnded) !== 0;
    this.#reader.giveBack(bytes, () => {
      // The splice has reported the error of the read, so that the stream does not.
      if (this.isDead)
        guarded(() => this.stream.destroy());
    });
  }
}

function createEndpoint(native, splice, options) {
  const { file, stream } = options;
  if (file !== undefined)
    return new FileHandleEndpoint(native, splice, options);
  return stream === undefined || stream.encrypted ?
    new Endpoint(native, splice, options) : new SocketEndpoint(native, splice, options);
}

// Closes the target of pipeToNative() when there is no splice that does it. Resolves when the
// target is closed, or when it cannot be expected to close any more; never rejects.
async function closeTarget(socket, target) {
  if (typeof target === 'number' && isInt32(target) && target >= 0) {
    // libuv has a handle for the descriptor of the socket itself.
    if (socket instanceof net.Socket && socket._handle?.fd === target) {
      target = socket;
    } else {
      try {
        closeSync(target);
      } catch {
        // The descriptor had been closed before, or is closed in spite of the error.
      }
    }
  }
  const { promise, resolve } = PromiseWithResolvers();
  const splice = { [kOnEndpointClose]: resolve };
  let endpoint;
  if (isFileHandle(target))
    endpoint = new FileHandleEndpoint(null, splice, { __proto__: null, file: target, autoClose: true });
  else if (target instanceof net.Socket)
    endpoint = new Endpoint(null, splice, { __proto__: null, stream: target, autoClose: true });
  else
    return;
  endpoint.closeNow();
  const timer = setTimeout(resolve, kStopTimeout);
  await promise;
  clearTimeout(timer);
  endpoint.unwatch();
}

// Called before a TLSSocket is made over a stream. Throws if a splice uses the stream.
function beforeWrap(stream) {
  const takeover = stream[kTakeover];
  if (takeover?.reader || takeover?.writer)
    throw new ERR_INVALID_STATE('The socket is in use by a splice');
}

// Called after a TLSSocket was made over a stream. `wrap` is the stream itself, or what makes a
// stream of JavaScript look like a net.Socket.
function afterWrap(stream, wrap) {
  below.add(wrap === stream ? wrap._handle : stream);
}

module.exports = {
  afterWrap, beforeWrap, checkSocket, closeTarget, createEndpoint, errorOf,
  kDirections, kOnEndpointClose, kOnEndpointConnect, kStopTimeout, nounOf, openNative,
  validateArguments, validateOptions,
};
