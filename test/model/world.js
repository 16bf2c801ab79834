'use strict';

// Carries out one program, and knows what must come of it.
//
//   peer <== TLS ==> socket <-- splices, or JavaScript --> endpoint <--> far
//
// Four streams: P is what the peer writes, F what the far side writes; S and E
// are written by JavaScript on the socket and on the endpoint. While nothing is
// spliced, JavaScript reads P from the socket and F from the endpoint. That may
// be a TLSSocket, too, and the far side the peer of that.

const { once } = require('events');
const fs = require('fs');
const net = require('net');
const { isDeepStrictEqual } = require('util');
const { Failure, Receiver, Stream, fail } = require('./oracle');
const { overJS } = require('./sockets');

const turn = () => new Promise(setImmediate);

function count(stats) {
  if (!stats)
    return 'failed';
  const { bytesIn, bytesOut, closeNotify, reason } = stats;
  return `${bytesIn} in, ${bytesOut} out, ${closeNotify ? 'close_notify, ' : ''}${reason}`;
}

function endOf(error) {
  return error.code ?? error.message;
}

// Only TCP knows resets, and not after end(): Node would leak the descriptor.
function reset(socket) {
  if (socket.remotePort === undefined || socket.writableEnded)
    socket.destroy();
  else
    socket.resetAndDestroy();
}

// One splice, by spliceTo() or (`pipe`) by pipeToNative().
class Splice {
  handle = null;
  options;
  hasIn;
  hasOut;
  begun = false;
  // After JavaScript has seen the end of P
  late = false;
  // Parts of what the far side and the peer get, once it has begun.
  partIn = null;
  partOut = null;
  // What JavaScript held then.
  tookIn = 0;
  tookOut = 0;
  error = null;
  stats = null;
  stop = null;
  aborted = false;
  controller = null;
  // When it is closed.
  ended;

  constructor(options) {
    this.options = options;
    this.hasIn = options.direction !== 'out';
    this.hasOut = options.direction !== 'in';
  }

  get state() {
    if (this.handle !== null)
      return this.handle.state;
    return this.stats === null && this.error === null ? 'running' : 'closed';
  }
}

class World {
  // Counts everything that happens. When it stands still, the program hangs.
  progress = 0;
  trace = [];
  #config;
  #ops;
  #sockets;
  #waiting = new Set();
  #failed;
  #reject;
  #closed = false;
  #hasFailed = false;
  #renegotiated = 0;
  #messages = '';
  #requested = 0;

  #peer;
  #raw;          // The net.Socket under the peer.
  #socket;
  #secure = false;
  #peerSecure = false;
  // The endpoint: a net.Socket, or the two ends of FIFOs.
  #endpoint = null;
  #sinkFd = -1;
  #sourceFd = -1;
  #fifos = [];
  #farReader;
  #farWriter;
  // Of a TLSSocket
  #farRaw;
  #endpointSecure = true;
  #farSecure = true;
  #all = [];     // All sockets, to be destroyed.

  #P = new Stream('P', 1);
  #F = new Stream('F', 2);
  #S = new Stream('S', 3);
  #E = new Stream('E', 4);
  #peerGets = new Receiver('the peer');
  #farGets = new Receiver('the far side');
  // How far splices and JavaScript have come with P and F.
  #atP = 0;
  #atF = 0;
  // Who has got the directions now, begun or not.
  #inOwner = null;
  #outOwner = null;
  // What JavaScript got when it could not know how much a splice has taken.
  #heldP = [];
  #heldF = [];
  #splices = [];
  // What has been done on purpose, and what may be lost and fail by it.
  #tlsFault = false;
  #farFault = false;
  #socketEnded = false;
  #endpointEnded = false;
  #fdClosed = false;
  // Nobody knows how much has been taken of it.
  #lostP = false;
  #lostF = false;

  constructor(program, sockets) {
    this.#config = program.config;
    this.#ops = program.ops;
    this.#sockets = sockets;
    this.#failed = new Promise((resolve, reject) => this.#reject = reject);
    this.#failed.catch(() => {});
  }

  // Rejects with a Failure if the program has another outcome than it must.
  async run() {
    try {
      await Promise.race([this.#failed, this.#program()]);
    } catch (err) {
      this.#hasFailed = true;
      throw err;
    } finally {
      this.#closed = true;
      await this.#cleanUp();
    }
  }

  hang() {
    this.#fail(new Failure(`hangs, ${this.describe()}`));
  }

  describe() {
    const say = (stream) => stream && [
      stream.destroyed && 'destroyed',
      stream.readableEnded && 'readableEnded',
      stream.writableEnded && 'writableEnded',
      stream.writableFinished && 'writableFinished',
      stream.isPaused?.() && 'paused',
      stream.readableLength && `readableLength ${stream.readableLength}`,
      stream.writableLength && `writableLength ${stream.writableLength}`,
    ].filter(Boolean).join(' ');
    const splices = this.#splices.filter(({ begun }) => begun).map(({ state, handle, options, stats }) =>
      `${options.direction} ${state} ${count(handle?.stats ?? stats)}`);
    return `at ${this.trace.at(-1)}; socket: ${say(this.#socket)}; peer: ${say(this.#peer)}; ` +
      `endpoint: ${say(this.#endpoint)}; far: ${say(this.#farReader)}, ${say(this.#farWriter)}; ` +
      `P ${this.#P.seen}/${this.#P.written}, F ${this.#F.seen}/${this.#F.written}; ${splices.join('; ')}`;
  }

  #fail(error) {
    this.#hasFailed = true;
    this.#reject(error);
  }

  #note(text) {
    this.trace.push(text);
    this.#progressed();
  }

  #progressed() {
    this.progress++;
    for (const waiter of this.#waiting) {
      if (waiter.condition()) {
        this.#waiting.delete(waiter);
        waiter.resolve();
      }
    }
  }

  // A listener that may fail.
  #checked(listener) {
    return (...args) => {
      if (this.#closed)
        return;
      try {
        listener(...args);
      } catch (err) {
        this.#fail(err);
      }
      this.#progressed();
    };
  }

  #until(what, condition) {
    if (condition() && !this.#closed)
      return;
    this.trace.push(`waiting until ${what}`);
    return new Promise((resolve) => this.#waiting.add({ condition, resolve }));
  }

  async #program() {
    await this.#connect();
    for (const op of this.#ops) {
      this.#note(JSON.stringify(op));
      await this.#do(op);
      // Others may have got its descriptors by now.
      if (this.#closed)
        return;
    }
    if (this.#config.openssl)
      await this.#finishOpenssl();
    else
      await this.#finish();
  }

  // --- What there is ---------------------------------------------------------

  async #connect() {
    const { under, role, version, halfOpen, early, fragment, openssl } = this.#config;
    const sockets = this.#sockets;
    let mine;
    let theirs;
    if (openssl) {
      const { peer, accepted, messages, fifo } = await sockets.openssl();
      this.#peer = peer;
      this.#fifos.push(fifo);
      this.#keep(messages);
      messages.setEncoding('latin1').on('data', this.#checked((text) => this.#messages += text));
      mine = this.#keep(accepted);
      mine.allowHalfOpen = halfOpen;
    } else {
      ({ raw: this.#raw, mine, theirs } = await this.#connectBelow(under, halfOpen, 'peer reset'));
    }

    await this.#connectEndpoint();
    let socket;
    if (role === 'client') {
      socket = sockets.tlsClient(mine, version);
      this.#peer = sockets.tlsServer(theirs, version);
    } else {
      socket = role === 'listener' ? sockets.tlsListener(mine, version) : sockets.tlsServer(mine, version);
      this.#peer ??= sockets.tlsClient(theirs, version);
    }
    this.#listen('peer', this.#peer);
    // TLSWrap loses the close_notify of what is written and ended inside of
    // 'secure'.
    this.#peer.once('secure', () => setImmediate(this.#checked(() => this.#peerSecure = true)));
    if (socket instanceof Promise) {
      socket = await socket;
      this.#secure = true;
    }
    socket.allowHalfOpen = halfOpen;
    this.#socket = socket;
    this.#listen('socket', socket);
    for (const { 0: stream, 1: mayEnd, 2: onData } of [
      [this.#peer, () => this.#peerMayEnd(), (chunk) => this.#lostF || this.#peerGets.accept(chunk)],
      [socket, () => this.#P.ended || this.#tlsFault, (chunk) => this.#onSocketData(chunk)],
      [this.#farReader, () => this.#farMayEnd(), (chunk) => this.#farGets.accept(chunk)],
    ]) {
      stream.on('data', this.#checked(onData));
      stream.on('end', this.#checked(() => {
        this.trace.push(`end of ${stream.name}`);
        if (!mayEnd())
          fail(`${stream.name} sees an end that there is not`);
      }));
    }
    if (this.#endpoint && this.#config.by === 'stream')
      this.#readEndpoint(this.#endpoint);

    if (!this.#secure) {
      const secure = Promise.all([once(socket, 'secure'), this.#peer.encrypted && once(this.#peer, 'secure')]);
      socket.once('secure', this.#checked(() => {
        this.#secure = true;
        for (const splice of this.#splices)
          this.#begin(splice);
      }));
      if (early)
        secure.catch(() => {});
      else
        await secure.then(turn);
    }
    if (fragment) {
      for (const stream of [socket, this.#peer, this.#endpoint, this.#farReader])
        stream?.setMaxSendFragment?.(fragment);
    }
  }

  // What TLS is to run over, and what is below the side that is not spliced.
  async #connectBelow(under, halfOpen, resetFault) {
    const sockets = this.#sockets;
    const { 0: raw, 1: socket } = await sockets.pair(under === 'unix' ? 'unix' : 'tcp');
    let mine = this.#keep(socket);
    let theirs = this.#keep(raw);
    if (this.#isOverJS(resetFault))
      theirs = this.#keep(overJS(theirs));
    if (under === 'tls') {
      const outer = [sockets.tlsClient(theirs), sockets.tlsServer(mine)];
      // With an error of TLS it is not destroyed, and what is above it hears of
      // nothing.
      outer.forEach((socket) => this.#keep(socket).on('error', () => socket.destroy()));
      await Promise.all(outer.map((socket) => once(socket, 'secure')));
      ({ 0: theirs, 1: mine } = outer);
    }
    if (under === 'js')
      mine = this.#keep(overJS(mine));
    else
      mine.allowHalfOpen = halfOpen;
    theirs.allowHalfOpen = true;
    return { raw, mine, theirs };
  }

  // A TLSSocket does not bear that its net.Socket is reset, spliced or not.
  #isOverJS(resetFault) {
    return this.#ops.some(({ 1: fault }) => fault === resetFault);
  }

  async #connectTLSEndpoint() {
    const { endpointVersion: version, endpointRole: role } = this.#config;
    const { endpointUnder, endpointHalfOpen, endpointEarly } = this.#config;
    const sockets = this.#sockets;
    const { raw, mine, theirs } = await this.#connectBelow(endpointUnder, endpointHalfOpen, 'far reset');
    this.#farRaw = raw;
    const far = role === 'client' ? sockets.tlsServer(theirs, version) : sockets.tlsClient(theirs, version);
    this.#farReader = this.#farWriter = far;
    this.#listen('far', far);
    this.#endpointSecure = this.#farSecure = false;
    far.once('secure', () => setImmediate(this.#checked(() => this.#farSecure = true)));
    const endpoint = await (
      role === 'client' ? sockets.tlsClient(mine, version) :
        role === 'server' ? sockets.tlsServer(mine, version) : sockets.tlsListener(mine, version));
    endpoint.allowHalfOpen = endpointHalfOpen;
    this.#endpoint = endpoint;
    this.#listen('endpoint', endpoint);
    if (role === 'listener')
      this.#endpointSecure = true;
    else
      endpoint.once('secure', this.#checked(() => this.#endpointSecure = true));
    if (!endpointEarly)
      await this.#until('the endpoint is secure', () => this.#endpointSecure && this.#farSecure);
  }

  async #connectEndpoint() {
    const { endpoint, by, endpointHalfOpen } = this.#config;
    if (endpoint === 'tls')
      return this.#connectTLSEndpoint();
    if (endpoint === 'fifo') {
      const sink = this.#sockets.fifo();
      const source = this.#sockets.fifo();
      this.#fifos.push(sink, source);
      this.#sinkFd = sink.writer;
      this.#sourceFd = source.reader;
      this.#farReader = new net.Socket({ fd: sink.reader, writable: false });
      this.#farWriter = new net.Socket({ fd: source.writer, readable: false });
      this.#listen('the far reader', this.#farReader);
      this.#listen('the far writer', this.#farWriter);
      return;
    }
    const { 0: far, 1: mine } = await this.#sockets.pair(endpoint, by === 'fd');
    mine.allowHalfOpen = endpointHalfOpen;
    this.#endpoint = mine;
    this.#farReader = this.#farWriter = far;
    this.#listen('endpoint', mine);
    this.#listen('far', far);
  }

  #keep(stream) {
    if (stream) {
      this.#all.push(stream);
      stream.on('error', () => {});
    }
    return stream;
  }

  #listen(name, stream) {
    this.#keep(stream);
    stream.name = name;
    stream.on('error', this.#checked((err) => {
      this.trace.push(`error of ${name}: ${endOf(err)}`);
      const ofTLS = name === 'peer' || name === 'socket';
      // s_client closes its pipes as it exits.
      if (stream.child && this.#socketEnded)
        return;
      if (!(ofTLS ? this.#tlsFault : this.#endpointMayFail()))
        fail(`${name} fails: ${err.stack}`);
    }));
    stream.on('close', this.#checked(() => this.trace.push(`close of ${name}`)));
    if (name === 'socket') {
      stream.on('close', this.#checked(() => {
        if (!stream.destroyed)
          fail('the socket is closed, but not destroyed');
      }));
    }
  }

  #readEndpoint(stream) {
    stream.on('data', this.#checked((chunk) => this.#onEndpointData(chunk)));
    stream.on('end', this.#checked(() => {
      this.trace.push('end of endpoint');
      if (!this.#F.ended && !this.#farFault && !this.#endpointMayFail())
        fail('the endpoint sees an end that there is not');
    }));
    stream.resume();
  }

  // --- What may happen -------------------------------------------------------

  #endpointMayFail() {
    // With unread bytes in it, autoClose resets a socket.
    return this.#farFault || this.#splices.some(({ options, state, handle }) =>
      options.autoClose && (handle === null || state === 'stopping' || state === 'closed'));
  }

  #peerMayEnd() {
    return this.#socketEnded || this.#tlsFault || (this.#P.ended && !this.#config.halfOpen) ||
      ((this.#F.ended || this.#endpointMayFail()) &&
        this.#splices.some(({ hasOut, options }) => hasOut && options.end));
  }

  #farMayEnd() {
    return this.#endpointEnded || this.#fdClosed || this.#endpointMayFail() ||
      (this.#F.ended && !this.#config.endpointHalfOpen) ||
      ((this.#P.ended || this.#tlsFault) && this.#splices.some(({ hasIn, options }) => hasIn && options.end));
  }

  // --- Who has what ----------------------------------------------------------

  // Takes over from JavaScript.
  #begin(splice) {
    if (splice.begun || splice.state === 'closed')
      return;
    splice.begun = true;
    const socket = this.#socket;
    splice.late = socket.readableEnded;
    if (splice.hasIn) {
      splice.partIn = this.#farGets.open(this.#P, this.#atP);
      splice.tookIn = socket.readableLength;
    }
    if (splice.hasOut) {
      splice.partOut = this.#peerGets.open(this.#F, this.#atF);
      splice.tookOut = this.#S.written > 0 || this.#atF > 0 || this.#splices.some(({ partOut }) => partOut) ? Infinity :
        this.#endpoint?.readableLength ?? 0;
    }
  }

  // The splice that has the direction has given it back.
  #settleIn(stats = this.#inOwner.handle.stats) {
    const splice = this.#inOwner;
    this.#inOwner = null;
    if (splice.partIn === null)
      return;
    this.#farGets.close(splice.partIn, stats.bytesIn);
    this.#atP += stats.bytesIn;
    for (const chunk of this.#heldP.splice(0))
      this.#socketRead(chunk);
  }

  #settleOut(stats = this.#outOwner.handle.stats) {
    const splice = this.#outOwner;
    this.#outOwner = null;
    if (splice.partOut === null)
      return;
    this.#peerGets.close(splice.partOut, stats.bytesOut);
    this.#atF += stats.bytesOut;
    for (const chunk of this.#heldF.splice(0))
      this.#endpointRead(chunk);
  }

  // With autoClose it may be a while from then until the endpoint is closed.
  #hasGivenBack(owner) {
    const { handle, options, state } = owner;
    return state === 'closed' || (options.autoClose && state === 'stopping' && handle.stats.reason === 'end');
  }

  #settleClosed() {
    if (this.#inOwner?.handle && this.#hasGivenBack(this.#inOwner))
      this.#settleIn();
    if (this.#outOwner?.handle && this.#hasGivenBack(this.#outOwner))
      this.#settleOut();
  }

  #onSocketData(chunk) {
    this.#settleClosed();
    const owner = this.#inOwner;
    if (owner?.begun) {
      // How much pipeToNative() has moved is only known when it is over.
      if (owner.handle === null) {
        this.#heldP.push(chunk);
        return;
      }
      if (owner.state !== 'stopping')
        fail(`the socket emits 'data' while the splice is ${owner.state}`);
      this.#settleIn();
    }
    this.#socketRead(chunk);
  }

  #socketRead(chunk) {
    this.#P.check(chunk, this.#atP, "the socket's reader");
    this.#atP += chunk.length;
  }

  #onEndpointData(chunk) {
    this.#settleClosed();
    const owner = this.#outOwner;
    if (owner?.begun) {
      if (owner.handle === null) {
        this.#heldF.push(chunk);
        return;
      }
      // A TLSSocket has it back as soon as it cannot be passed on.
      if (!this.#endpoint.encrypted || !this.#socket.writableEnded)
        fail(`the endpoint emits 'data' while the splice is ${owner.state}`);
      this.#settleOut();
    }
    this.#endpointRead(chunk);
  }

  #endpointRead(chunk) {
    // What the pump has taken from the source is lost with the TLS session.
    if (this.#tlsFault) {
      this.#lostF = true;
      return;
    }
    this.#F.check(chunk, this.#atF, "the endpoint's reader");
    this.#atF += chunk.length;
  }

  // --- What is done ----------------------------------------------------------

  #canWrite(writer) {
    return !writer.writableEnded && !writer.destroyed;
  }

  #write(stream, writer, length) {
    if (this.#canWrite(writer))
      writer.write(stream.next(length));
  }

  #end(stream, writer) {
    stream.ended = true;
    if (this.#canWrite(writer))
      writer.end();
  }

  async #do([name, ...args]) {
    const socket = this.#socket;
    const endpoint = this.#config.by === 'stream' ? this.#endpoint : null;
    this.#settleClosed();
    switch (name) {
      case 'p.write': return this.#write(this.#P, this.#peer, args[0]);
      case 'f.write': return this.#write(this.#F, this.#farWriter, args[0]);
      case 's.write': return this.#socketWrite(args[0]);
      case 'e.write': return this.#endpointWrite(endpoint, args[0]);
      case 'p.end':
        // Before its handshake is done it would cut that off.
        if (this.#peerSecure)
          this.#end(this.#P, this.#peer);
        return;
      case 'f.end':
        if (this.#farSecure)
          this.#end(this.#F, this.#farWriter);
        return;
      case 's.end':
        if (!this.#secure)
          return;
        this.#socketEnded = true;
        socket.end();
        // Not only when the source ends.
        if (args[0] && !this.#tlsFault) {
          this.#resume();
          await this.#until('the peer sees the end',
                            () => this.#peer.readableEnded || this.#tlsFault || socket.destroyed);
        }
        return;
      case 'e.end':
        if (endpoint && this.#endpointSecure) {
          this.#endpointEnded = true;
          endpoint.end();
          if (args[0] && !this.#farFault) {
            this.#resume();
            await this.#until('the far side sees the end',
                              () => this.#farReader.readableEnded || this.#farFault || endpoint.destroyed);
          }
        }
        return;
      case 'p.pause': this.#peer.pause(); return;
      case 'p.resume': this.#peer.resume(); return;
      case 'f.pause': this.#farReader.pause(); return;
      case 'f.resume': this.#farReader.resume(); return;
      case 's.pause': socket.pause(); return;
      case 's.resume': socket.resume(); return;
      case 'e.pause': endpoint?.pause(); return;
      case 'e.resume': endpoint?.resume(); return;
      case 's.cork': socket.cork(); return;
      case 's.uncork': socket.uncork(); return;
      case 'e.cork': endpoint?.cork(); return;
      case 'e.uncork': endpoint?.uncork(); return;
      case 'start': return this.#start(args[0]);
      case 'stop': return this.#stop(args[0], args[1]);
      case 'abort': return this.#abort(args[0]);
      case 'closeFd': return this.#closeFd();
      case 'renegotiate': return this.#renegotiate(args[0] === 1 && endpoint?.encrypted === true, args[1], args[2]);
      case 'keyUpdate': return this.#keyUpdate(args[0]);
      case 'turns':
        for (let i = args[0]; i > 0; i--)
          await turn();
        return;
      case 'quiet': return this.#quiet();
      case 'ref': {
        const splice = this.#running(args[0]);
        if (splice?.handle) {
          splice.handle.unref();
          splice.handle.ref();
        }
        return;
      }
      case 'fault': return this.#fault(...args);
      default: throw new Error(`no such op: ${name}`);
    }
  }

  // Until nothing moves any more.
  async #quiet() {
    for (let last = this.progress, same = 0; same < 20; last = this.progress) {
      await turn();
      same = this.progress === last ? same + 1 : 0;
    }
  }

  #socketWrite(length) {
    const owner = this.#outOwner;
    if (this.#socket.writableEnded || this.#socket.destroyed || (owner && owner.handle === null))
      return;
    try {
      this.#socket.write(this.#S.next(length));
    } catch (err) {
      this.#S.written -= length;
      if (err.code !== 'ERR_INVALID_STATE' || owner === null)
        throw err;
      return;
    }
    if (owner) {
      // Only these give 'out' back before all is over.
      if (!(owner.options.autoClose && owner.state === 'stopping') && (owner.options.end || !(this.#F.ended || this.#endpointMayFail())))
        fail('write() while the direction is spliced');
      this.#settleOut();
    }
    this.#peerGets.add(this.#S, this.#S.written - length, length);
  }

  // While it is spliced only a TLSSocket knows that it is not to be written to.
  #endpointWrite(endpoint, length) {
    const owner = this.#inOwner;
    if (!endpoint?.writable || this.#lostP || (owner && (owner.handle === null || !endpoint.encrypted)))
      return;
    try {
      endpoint.write(this.#E.next(length));
    } catch (err) {
      this.#E.written -= length;
      // It is given back before the handle is closed, but after the socket.
      if (err.code !== 'ERR_INVALID_STATE' ||
          !this.#splices.some(({ hasIn, stats, error }) => hasIn && stats === null && error === null)) {
        throw err;
      }
      return;
    }
    if (owner) {
      // Only this gives it back before all is over.
      if (owner.options.end || !(this.#P.ended || this.#tlsFault))
        fail('write() to the endpoint while it is spliced');
      this.#settleIn();
    }
    this.#farGets.add(this.#E, this.#E.written - length, length);
  }

  // The code of the error that spliceTo() or start() must throw; null: it may.
  #refusal({ direction }, stream) {
    const socket = this.#socket;
    if (socket.destroyed || !socket._handle)
      return 'ERR_SOCKET_CLOSED';
    let may = false;
    if (stream) {
      if (stream.destroyed)
        return 'ERR_SOCKET_CLOSED';
      // A splice keeps it until it is closed.
      for (const { hasIn, hasOut, state, stats, error } of this.#splices) {
        if ((direction === 'in' || !hasOut) && (direction === 'out' || !hasIn))
          continue;
        if (state !== 'closed' && !stream.encrypted && hasOut && direction !== 'in')
          return 'ERR_INVALID_STATE';
        may ||= stats === null && error === null;
      }
    }
    for (const { 0: wanted, 1: owner } of [['out', this.#inOwner], ['in', this.#outOwner]]) {
      if (owner === null || direction === wanted)
        continue;
      // It is given back some time before the handle is closed.
      if (owner.state === 'running' &&
          (wanted === 'out' || owner.options.end || !(this.#F.ended || this.#endpointMayFail())))
        return 'ERR_INVALID_STATE';
      may = true;
    }
    if (direction !== 'in' && socket.writableEnded)
      return 'ERR_INVALID_STATE';
    return may ? null : undefined;
  }

  #start(options) {
    const { endpoint, by, endpointHalfOpen } = this.#config;
    const { direction } = options;
    if (endpoint === 'fifo' && direction === 'duplex') {
      this.#start({ ...options, direction: 'in' });
      this.#start({ ...options, direction: 'out' });
      return;
    }
    // pipeToNative() has both directions to itself; and so has an endpoint
    // that ends one side when the other does.
    const live = this.#splices.some(({ state }) => state !== 'closed');
    if (live && (options.pipe || this.#splices.some(({ state, handle, options }) =>
      state !== 'closed' && (handle === null || options.autoClose)))) {
      return;
    }
    if (!endpointHalfOpen && endpoint !== 'tls' &&
        (direction !== 'duplex' || !this.#secure || this.#F.ended || this.#endpoint?.writableEnded)) {
      return;
    }
    const hasIn = direction !== 'out';
    const hasOut = direction !== 'in';
    const stream = endpoint !== 'fifo' && by === 'stream' ? this.#endpoint : undefined;
    let fd;
    if (stream === undefined) {
      fd = endpoint !== 'fifo' ? this.#endpoint._handle?.fd : hasIn ? this.#sinkFd : this.#sourceFd;
      if (!(fd >= 0) || (endpoint !== 'fifo' && this.#endpoint.writableLength > 0))
        return;
    }
    // What is over cannot be spliced.
    if ((hasIn && this.#endpoint?.writableEnded) || (hasOut && this.#endpoint?.readableEnded))
      return;

    const refusal = this.#refusal(options, stream);
    // JSStreamSocket does not bear that TLS is ended during its handshake, spliced
    // or not.
    const autoClose = options.autoClose && !live && refusal === undefined && this.#endpointSecure &&
      (stream !== undefined || endpoint === 'fifo');
    const splice = new Splice({ ...options, autoClose });
    const { end, highWaterMark, signal, pipe } = options;
    if (signal)
      splice.controller = new AbortController();
    const spliceOptions = {
      autoClose,
      end,
      ...(highWaterMark ? { highWaterMark } : {}),
      ...(signal ? { signal: splice.controller.signal } : {}),
    };
    if (pipe) {
      if (refusal === undefined)
        this.#pipe(splice, stream ?? fd, { direction, ...spliceOptions });
      return;
    }
    try {
      splice.handle = this.#socket.spliceTo({ fd, stream, direction, ...spliceOptions });
      this.#watch(splice);
      if (splice.handle.state !== 'idle')
        fail(`a new splice is ${splice.handle.state}`);
      if (splice.handle.start() !== splice.handle || splice.handle.state !== 'running')
        fail('start() does not start');
    } catch (err) {
      if (refusal === undefined || err.code !== (refusal ?? 'ERR_INVALID_STATE'))
        throw err;
      if (splice.handle) {
        splice.stop = splice.handle.stop();
        this.#splices.push(splice);
      }
      return;
    }
    if (refusal)
      fail(`start() must throw ${refusal}`);
    this.#started(splice);
  }

  #started(splice) {
    if (splice.hasIn && this.#inOwner)
      this.#settleIn();
    if (splice.hasOut && this.#outOwner)
      this.#settleOut();
    if (splice.hasIn)
      this.#inOwner = splice;
    if (splice.hasOut)
      this.#outOwner = splice;
    // The descriptor's number is its own from now on.
    if (splice.options.autoClose && this.#config.endpoint === 'fifo') {
      if (splice.hasIn)
        this.#sinkFd = -1;
      if (splice.hasOut)
        this.#sourceFd = -1;
    }
    this.#splices.push(splice);
    if (this.#secure)
      this.#begin(splice);
  }

  #pipe(splice, target, options) {
    this.#started(splice);
    const closed = (stats, error) => {
      splice.stats = stats;
      splice.error = error;
      this.trace.push(`pipeToNative: ${error ? endOf(error) : count(stats)}`);
      if (error) {
        // It has destroyed the socket, and does not tell how far it has come.
        if (!this.#socket.destroyed)
          fail('pipeToNative() has failed, and the socket is not destroyed');
        if (!this.#tlsFault && !this.#endpointMayFail() && !this.#isForEnded(error) && !this.#isEndedEarly(error))
          fail(`pipeToNative() fails: ${error.stack}`);
        this.#tlsFault = true;
        this.#lostP ||= splice.hasIn;
        if (this.#inOwner === splice)
          this.#inOwner = null;
        if (this.#outOwner === splice)
          this.#outOwner = null;
        return;
      }
      this.#closedWith(splice, stats);
    };
    splice.ended = this.#socket.pipeToNative(target, options).then(
      this.#checked((stats) => closed(stats, null)),
      this.#checked((error) => {
        // It destroys the socket on its own.
        closed(null, error);
      }));
  }

  // 'error' at most once, then 'close' once, and the promise says the same.
  #watch(splice) {
    const { handle } = splice;
    let finished;
    if (this.#config.listen === 'finished')
      finished = handle.finished;
    else
      handle.on('error', this.#checked((err) => this.#onError(splice, err)));
    let closed;
    splice.ended = new Promise((resolve) => closed = resolve);
    handle.on('close', this.#checked((stats) => {
      const settle = async () => {
        const outcome = await (finished ?? handle.finished).then(
          (value) => ({ value }), (error) => ({ error }));
        if (finished && outcome.error)
          this.#onError(splice, outcome.error);
        if (outcome.error !== (splice.error ?? undefined))
          fail(`'finished' has ${outcome.error}, and 'error' ${splice.error}`);
        if (!outcome.error && !isDeepStrictEqual(outcome.value, stats))
          fail("'finished' has other stats than 'close'");
        if (!isDeepStrictEqual(await handle.stop(), stats))
          fail("stop() has other stats than 'close'");
        if (splice.stats !== null)
          fail("'close' was emitted twice");
        this.trace.push(`splice ${splice.options.direction} closed: ${count(stats)}`);
        splice.stats = stats;
        this.#closedWith(splice, stats);
      };
      if (handle.state !== 'closed')
        fail(`'close' of a splice that is ${handle.state}`);
      settle().catch((err) => this.#fail(err)).finally(() => {
        closed();
        this.#progressed();
      });
    }));
  }

  #onError(splice, err) {
    this.trace.push(`splice ${splice.options.direction} error: ${endOf(err)} ${err.syscall}`);
    if (splice.error !== null)
      fail(`a second error, ${err.stack}`);
    if (splice.stats !== null)
      fail("'error' after 'close'");
    splice.error = err;
    if (this.#tlsFault)
      return;
    if (!this.#endpointMayFail() && !this.#isForEnded(err) && !this.#isEndedEarly(err))
      fail(`the splice fails: ${err.stack}`);
    if (err.code === 'ERR_STREAM_PREMATURE_CLOSE' || this.#isEndedEarly(err))
      return;
    const ofTLS = this.#endpoint?.encrypted &&
      (err === this.#endpoint.errored || (this.#farFault && err.code.startsWith('ERR_SSL_')));
    if (!ofTLS && (!['EPIPE', 'ECONNRESET'].includes(err.code) || !['read', 'write'].includes(err.syscall)))
      fail(`not an error of the endpoint: ${err.stack}`);
    // Handed back alive, if it has not come to its own end.
    if (this.#socket.destroyed && !(this.#socket.readableEnded && this.#socket.writableFinished))
      fail('the endpoint has failed, and the socket is destroyed');
  }

  // What comes for a stream that JavaScript has ended, or Node without allowHalfOpen.
  #isForEnded({ code, syscall }) {
    const endpoint = this.#config.by === 'stream' ? this.#endpoint : null;
    // It has ended both ways, and closes itself.
    if (code === 'ERR_STREAM_PREMATURE_CLOSE')
      return this.#endpointEnded && this.#F.ended && !endpoint?.encrypted;
    return code === 'EPIPE' && syscall === 'write' &&
      (endpoint?.writableEnded || (endpoint?.encrypted && this.#socket.writableEnded));
  }

  // JavaScript has ended the stream between spliceTo() and the end of the handshake.
  #isEndedEarly({ code }) {
    return code === 'ERR_INVALID_STATE' && this.#config.early && this.#endpoint?.writableEnded;
  }

  // The documented ends.
  #closedWith(splice, stats) {
    const { hasIn, hasOut, options } = splice;
    const { bytesIn, bytesOut, closeNotify, reason } = stats;
    const partIn = this.#inOwner === splice ? splice.partIn : null;
    if (this.#inOwner === splice)
      this.#settleIn(stats);
    else if (splice.partIn && splice.partIn.length !== bytesIn)
      fail(`bytesIn was ${splice.partIn.length} when the socket was given back, and is ${bytesIn}`);
    if (this.#outOwner === splice)
      this.#settleOut(stats);
    else if (splice.partOut && splice.partOut.length !== bytesOut)
      fail(`bytesOut was ${splice.partOut.length} when the socket was given back, and is ${bytesOut}`);
    if ((!hasIn && bytesIn !== 0) || (!hasOut && bytesOut !== 0))
      fail(`counts of a direction that is not spliced: ${JSON.stringify(stats)}`);
    // Of one byte at least, and the record that is made of it. Besides there is
    // what JavaScript has held, and what has been read ahead as ciphertext.
    const most = Math.max(options.highWaterMark || 262144, 64);
    if (stats.peakBufferedIn > most + splice.tookIn + 131072 ||
        stats.peakBufferedOut > most + 1.3 * splice.tookOut) {
      fail(`more is held than highWaterMark ${most}: ${JSON.stringify(stats)}`);
    }
    switch (reason) {
      case 'end':
        if (this.#tlsFault)
          break;
        if (hasIn) {
          if (!this.#P.ended)
            fail("reason 'end', but the peer has not ended");
          if (!closeNotify)
            fail('the peer has sent close_notify, and stats.closeNotify is false');
          if (partIn !== null && this.#atP !== this.#P.written)
            fail(`reason 'end' after ${this.#atP} bytes of ${this.#P.written}`);
        }
        if (hasOut && !this.#peerMayEnd() && !this.#F.ended && !this.#endpointMayFail())
          fail("reason 'end', but nobody has ended");
        break;
      case 'stopped':
        if (splice.stop === null)
          fail("reason 'stopped' without stop()");
        break;
      case 'aborted':
        if (!splice.aborted)
          fail("reason 'aborted' without abort()");
        break;
      case 'destroyed':
        // A socket that has ended both ways destroys itself.
        if (!this.#tlsFault && !splice.late)
          fail("reason 'destroyed' without destroy()");
        if (!this.#socket.destroyed)
          fail("reason 'destroyed', but the socket is not");
        if (splice.error !== null && splice.error !== this.#socket.errored)
          fail(`destroyed with ${this.#socket.errored}, and 'error' is ${splice.error}`);
        break;
      case 'error':
        if (splice.error === null)
          fail("reason 'error' without 'error'");
        break;
      default:
        fail(`the reason is ${reason}`);
    }
    if (splice.error !== null && reason !== 'error' && reason !== 'destroyed')
      fail(`'error' with the reason '${reason}'`);
  }

  #running(number) {
    const running = this.#splices.filter(({ state, handle }) => handle !== null && state !== 'closed');
    return running[number % running.length];
  }

  async #stop(number, wait) {
    const splice = this.#running(number);
    if (splice === undefined)
      return;
    const promise = splice.handle.stop();
    splice.stop ??= promise;
    if (promise !== splice.stop)
      fail('stop() returns another promise');
    if (!['stopping', 'closed'].includes(splice.state))
      fail(`after stop() the state is ${splice.state}`);
    if (wait)
      await promise;
  }

  #abort(number) {
    const able = this.#splices.filter(({ state, controller }) => state !== 'closed' && controller !== null);
    const splice = able[number % able.length];
    if (splice !== undefined) {
      splice.aborted = true;
      splice.controller.abort();
    }
  }

  #closeFds() {
    for (const fd of [this.#sinkFd, this.#sourceFd].filter((fd) => fd >= 0))
      fs.closeSync(fd);
    this.#sinkFd = this.#sourceFd = -1;
  }

  // The owner of the descriptor closes it. That is nothing to the splice.
  #closeFd() {
    if (this.#config.endpoint === 'fifo') {
      this.#closeFds();
    } else if (this.#config.by === 'fd') {
      this.#endpoint.destroy();
    } else {
      return;
    }
    this.#fdClosed = true;
    // What nobody reads any more is lost, and is a reset for the far side.
    this.#farFault = true;
  }

  // After close_notify there is none. And when one comes meanwhile, be it because a
  // splice passes on an end, renegotiate() never calls back.
  #canRenegotiate(ofEndpoint) {
    const streams = ofEndpoint ? [this.#farReader, this.#endpoint] : [this.#peer, this.#socket];
    if (streams.some((stream) => stream.destroyed || stream.writableEnded))
      return false;
    // A socket that cannot write leaves the endpoint unread.
    if (this.#tlsFault)
      return false;
    return ofEndpoint ?
      !this.#F.ended && !this.#farMayEnd() && this.#endpointSecure && this.#farSecure :
      !this.#P.ended && !this.#peerMayEnd() && this.#secure && this.#peerSecure;
  }

  // What JavaScript does inside of SSL_read(), if the connection is spliced.
  #inside(op) {
    // Otherwise TLSWrap would shut down there, which it does not bear.
    const isSpliced = (owner, hasEnded) => owner?.begun && (owner.options.end || !hasEnded);
    if ((op[0] === 's.end' && !isSpliced(this.#outOwner, this.#F.ended || this.#endpointMayFail())) ||
        (op[0] === 'e.end' && !isSpliced(this.#inOwner, this.#P.ended || this.#tlsFault))) {
      return;
    }
    this.#note(`inside: ${JSON.stringify(op)}`);
    this.#do(op).catch((err) => this.#fail(err));
  }

  // `op` is done in a listener to `event` of the spliced side.
  async #renegotiate(ofEndpoint, event, op) {
    const { version, role, under, endpointVersion, endpointRole, endpointUnder } = this.#config;
    if ((ofEndpoint ? endpointVersion : version) !== 'TLSv1.2' || !this.#canRenegotiate(ofEndpoint))
      return;
    // OpenSSL does not take data while it waits for the other's handshake, and
    // both sides have to read.
    this.#resume();
    await this.#quiet();
    // More of them are an attack for Node.
    if (!this.#canRenegotiate(ofEndpoint) || ++this.#renegotiated > 2)
      return;
    const { 0: mine, 1: theirs } = ofEndpoint ? [this.#endpoint, this.#farReader] : [this.#socket, this.#peer];
    const isMine = (ofEndpoint ? endpointRole : role) === 'client';
    // renegotiate() writes nothing, to begin with it. Until JSStreamSocket has done
    // that it takes no other write, and an answer of OpenSSL's ends the process.
    const isOverJS = isMine ? (ofEndpoint ? endpointUnder : under) === 'js' :
      this.#isOverJS(ofEndpoint ? 'far reset' : 'peer reset');
    if (isOverJS)
      return;
    let done = false;
    const inside = this.#checked(() => this.#inside(op));
    if (event)
      mine.once(event, inside);
    const client = isMine ? mine : theirs;
    client.renegotiate({ rejectUnauthorized: false }, this.#checked((err) => {
      done = true;
      if (err && !(ofEndpoint ? this.#endpointMayFail() : this.#tlsFault))
        fail(`renegotiate() fails: ${err.stack}`);
    }));
    // There is no callback when the socket is destroyed meanwhile.
    await this.#until('the renegotiation is done', () => done || mine.destroyed || theirs.destroyed);
    mine.removeListener(event, inside);
  }

  // A line of its own for s_client, so it must have read all else. The answer to
  // a request may have to wait for something to be written, and s_client does
  // not bear to have asked twice.
  async #keyUpdate(request) {
    this.#resume();
    await this.#until('the peer is read', () => this.#P.seen === this.#P.written);
    const count = (what) => this.#messages.split(what).length;
    const sent = count(/>>> .*KeyUpdate/);
    if (count(/<<< .*KeyUpdate/) <= this.#requested)
      return;
    this.#requested += request;
    this.#peer.write(request ? 'K\n' : 'k\n');
    await this.#until('s_client has updated its keys', () => count(/>>> .*KeyUpdate/) > sent);
  }

  // When it has got so many chunks more. What is behind them it has not.
  #destroyReading(reader, chunks, writer = reader) {
    reader.on('data', () => {
      if (--chunks === 0) {
        reader.destroy();
        writer.destroy();
      }
    });
    reader.resume();
  }

  #fault(kind, chunks) {
    const socket = this.#socket;
    switch (kind) {
      case 'peer destroy':
        this.#tlsFault = true;
        this.#peer.destroy();
        return;
      case 'peer destroy reading':
        this.#tlsFault = true;
        this.#destroyReading(this.#peer, chunks);
        return;
      case 'peer reset':
        this.#tlsFault = true;
        reset(this.#raw);
        return;
      case 'peer garbage':
        this.#tlsFault = true;
        if (this.#raw.writable)
          this.#raw.write('This is not a record of TLS.');
        return;
      case 'far destroy':
      case 'far reset':
        this.#farFault = true;
        for (const stream of [this.#farReader, this.#farWriter]) {
          if (kind === 'far reset')
            reset(this.#farRaw ?? stream);
          else
            stream.destroy();
        }
        return;
      case 'far destroy reading':
        this.#farFault = true;
        this.#destroyReading(this.#farReader, chunks, this.#farWriter);
        return;
      case 'far garbage':
        if (this.#farRaw) {
          this.#farFault = true;
          if (this.#farRaw.writable)
            this.#farRaw.write('This is not a record of TLS.');
        }
        return;
      case 'endpoint destroy':
      case 'endpoint destroy error':
        if (this.#config.by === 'stream' && this.#endpoint) {
          this.#farFault = true;
          this.#endpoint.destroy(kind === 'endpoint destroy' ? undefined : new Error('destroyed on purpose'));
        }
        return;
      case 'socket destroy':
        this.#tlsFault = true;
        socket.destroy();
        return;
      case 'socket destroy error':
        this.#tlsFault = true;
        socket.destroy(new Error('destroyed on purpose'));
        return;
      default:
        throw new Error(`no such fault: ${kind}`);
    }
  }

  // --- How it ends -----------------------------------------------------------

  #resume() {
    const endpoint = this.#config.by === 'stream' ? this.#endpoint : null;
    for (const stream of [this.#peer, this.#farReader, this.#socket, endpoint])
      stream?.resume();
    for (const stream of [this.#socket, endpoint]) {
      while (stream?.writableCorked)
        stream.uncork();
    }
  }

  #allClosed() {
    return this.#splices.every(({ stats, error }) => stats !== null || error !== null);
  }

  async #finish() {
    const { finish } = this.#config;
    const socket = this.#socket;
    this.#note('finish');
    this.#resume();
    if (!this.#tlsFault)
      await this.#until('the handshake is done', () => this.#tlsFault || (this.#secure && this.#peerSecure));
    if (!this.#endpointMayFail()) {
      await this.#until('that of the endpoint is done',
                        () => this.#endpointMayFail() || (this.#endpointSecure && this.#farSecure));
    }
    // TLSWrap loses what it has yet to decrypt when it is shut down inside of
    // 'secure'.
    await turn();
    if (finish === 'destroy') {
      this.#fault('socket destroy');
    } else if (finish === 'stop') {
      for (const splice of this.#splices) {
        if (splice.handle)
          splice.stop ??= splice.handle.stop();
        else if (splice.controller)
          splice.controller.abort(splice.aborted = true);
      }
      await this.#until('all are stopped', () =>
        this.#splices.every(({ state, stop, aborted }) => state === 'closed' || !(stop || aborted)));
    }
    this.#end(this.#P, this.#peer);
    this.#end(this.#F, this.#farWriter);
    // A handshake that cannot be finished has no end of its own.
    if (this.#tlsFault && !this.#secure)
      socket.destroy();
    if (this.#endpointMayFail() && !this.#endpointSecure)
      this.#endpoint.destroy();
    await this.#until('the splices are closed', () => this.#allClosed());
    await Promise.all(this.#splices.map(({ ended }) => ended));
    this.#settleClosed();
    this.#socketEnded = true;
    if (!this.#socket.writableEnded && !this.#socket.destroyed)
      this.#socket.end();

    await this.#finishEndpoint();
    await this.#finishSocket();
    if (!this.#tlsFault && !this.#endpointMayFail()) {
      for (const stream of [this.#peer, socket, this.#endpoint, this.#farReader, this.#farWriter]) {
        if (stream)
          await this.#until(`${stream.name} is closed`, () => stream.closed);
      }
    }
  }

  // JavaScript has the endpoint again, reads what is left, and ends it.
  async #finishEndpoint() {
    const { endpoint, by } = this.#config;
    this.#endpointEnded = true;
    if (endpoint === 'fifo') {
      if (this.#sinkFd >= 0) {
        fs.closeSync(this.#sinkFd);
        this.#sinkFd = -1;
      }
      if (this.#sourceFd >= 0) {
        const rest = new net.Socket({ fd: this.#sourceFd, writable: false });
        this.#sourceFd = -1;
        this.#listen('the rest of the source', rest);
        this.#readEndpoint(rest);
      }
    } else if (!this.#endpoint.destroyed) {
      if (by === 'fd')
        this.#readEndpoint(this.#endpoint);
      this.#endpoint.end();
    }
    if (this.#endpointMayFail())
      return;
    const far = this.#farReader;
    await this.#until('the far side has it all', () => this.#farGets.missing === 0 && far.readableEnded);
    if (!this.#tlsFault)
      await this.#until('the source is read', () => this.#atF === this.#F.written);
  }

  async #finishSocket() {
    if (this.#tlsFault)
      return;
    const socket = this.#socket;
    await this.#until('the socket is read', () => this.#atP === this.#P.written && socket.readableEnded);
    await this.#until('the peer has it all', () => this.#peerGets.missing === 0 && this.#peer.readableEnded);
  }

  // s_client knows no half-close.
  async #finishOpenssl() {
    this.#note('finish');
    this.#resume();
    await this.#until('the peer is read', () => this.#P.seen === this.#P.written);
    this.#P.ended = true;
    for (const splice of this.#splices)
      await (splice.stop ??= splice.handle?.stop());
    await this.#until('the source is read', () => this.#F.seen === this.#F.written);
    this.#socketEnded = true;
    this.#socket.end();
    await this.#until('the peer has ended', () => this.#peer.readableEnded && this.#peerGets.missing === 0);
  }

  async #cleanUp() {
    for (const { handle } of this.#splices)
      handle?.stop();
    this.#closeFds();
    this.#peer?.child?.kill();
    // TLS before what is below it
    for (const stream of this.#all.toReversed()) {
      stream.on('error', () => {});
      stream.destroy();
    }
    for (const stream of this.#all) {
      if (!stream.closed)
        await new Promise((resolve) => stream.once('close', resolve));
    }
    if (!this.#hasFailed)
      this.#fifos.forEach((fifo) => this.#sockets.giveBack(fifo));
  }
}

module.exports = { World };
