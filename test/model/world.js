'use strict';

// Carries out one program, and knows what must come of it.
//
//   peer <== TLS ==> socket <-- splices, or JavaScript --> endpoint <--> far
//
// Four streams: P is what the peer writes, F what the far side writes; S and E
// are written by JavaScript on the socket and on the endpoint. While nothing is
// spliced, JavaScript reads P from the socket and F from the endpoint. That may
// be a TLSSocket, too, and the far side the peer of that.

const { subscribe, unsubscribe } = require('diagnostics_channel');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const { isDeepStrictEqual } = require('util');
const { Injector } = require('./injector');
const { Failure, Receiver, Stream, fail } = require('./oracle');
const { overJS } = require('./sockets');

// What is above the kernel of a connection, at most, and belongs to Node: that
// of one read, of a Duplex and of a net.Socket, and TLS in TLS.
const kAbove = 400_000;
// How many chunks of 64 KiB a stream under the TLSSocket may hand over after it has
// been stopped.
const kReadAhead = { tcp: 2, unix: 2, tls: 4, js: 6 };
// How a stream that fails under TLS may say it.
const kLost = ['ECONNRESET', 'EPIPE'];
const kTurnsToClose = 100;
// The diagnostics channels, and what a hook of each is called.
const kChannels = {
  'tls.splice.start': 'splice start',
  'tls.splice.error': 'splice fail',
  'tls.splice.end': 'splice end',
};
// Hooks of callbacks of OpenSSL's.
const kInside = new Set(['socket keylog', 'socket secure', 'socket session']);
// After which time a stream that is idle tells so, in ms.
const kIdle = 10;
// How often something is sent that a KeyUpdate has to come before.
const kAnswers = 5;
// What an injector does: an end, and what takes more than the bytes of a record.
const kEnds = new Set(['close_notify', 'user_canceled', 'user_canceled, FIN', 'FIN', 'cut record, FIN']);
const kNeedsKeys = new Set(['fatal alert', 'empty records', 'close_notify', 'user_canceled', 'user_canceled, FIN']);
// What is done at the far side, or is done when there is one. A net.Socket that is
// connecting needs the listeners of its own.
const kNeedsFar = /^(f\.|fill$|e\.connect$|e\.unlisten$)/;
// Faults of which each has but one outcome.
const kMild = new Set(['peer mute', 'peer FIN', 'peer reset behind the end']);

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
  // What JavaScript held then, and what of it the splice got as a head.
  tookIn = 0;
  head = null;
  tookOut = 0;
  error = null;
  stats = null;
  stop = null;
  aborted = false;
  // It was started after the socket had failed.
  isLate = false;
  // It has given bytes back, although nobody has asked for that.
  fails = false;
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

// A TLS server of version 1.2 has done its handshake before the client has heard of it.
// So the server is secure, and a client that was mute must hear the rest.
function unmute(raw) {
  raw.resume();
  raw._handle?.readStart();
}

class World {
  // Counts everything that happens. When it stands still, the program hangs.
  progress = 0;
  trace = [];
  #config;
  #ops;
  #sockets;
  #errorOfTwin;
  #waiting = new Set();
  #failed;
  #reject;
  #closed = false;
  #hasFailed = false;
  #renegotiated = 0;
  #messages = '';
  #requested = 0;
  // How often the socket and the endpoint have updated their keys, as their peers see it.
  #keyUpdates = { 'p.keyUpdate': 0, 'f.keyUpdate': 0 };
  // Which of them has been asked for a KeyUpdate that it has yet to send.
  #isAsked = { 'p.keyUpdate': false, 'f.keyUpdate': false };
  // The peer has asked the socket for a KeyUpdate.
  #mustAnswer = false;
  // The program waits for the answer to a KeyUpdate.
  #awaitsAnswer = false;

  #peer;
  #raw;          // The net.Socket under the peer.
  #injector = null;
  #bottom;       // The one under the socket.
  #below = null; // Of TLS in TLS, the TLSSocket that is not the inner one.
  #socket;
  #secure = false;
  #peerSecure = false;
  // The endpoint: a net.Socket, or the two ends of FIFOs.
  #endpoint = null;
  // What JavaScript writes to and reads of it; two streams if they are FIFOs that
  // are given as such.
  #sink = null;
  #source = null;
  #sinkFd = -1;
  #sourceFd = -1;
  // FileHandles, if they are given as such, and the promises of those that are being closed.
  #sinkFile = null;
  #sourceFile = null;
  #closing = [];
  #fifos = [];
  // How an endpoint that is connecting goes on, and the promise of that.
  #connecting = null;
  #connected;
  #farReader;
  #farWriter;
  // Of a TLSSocket
  #farRaw;
  #farInjector = null;
  #endpointSecure = true;
  #farSecure = true;
  #all = [];     // All sockets, to be destroyed.
  #listeners = new Map();

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
  #emitsClose;   // Resolves when the socket emits 'close', which is after it is `closed`.
  #writes = [];  // How often each write of the socket was called back.
  #splices = [];
  // What has been done on purpose, and what may be lost and fail by it.
  #tlsFault = false;
  #isStarting = false;
  // The splice whose start() has not returned.
  #starting = null;
  // A splice takes over what JavaScript has not read.
  #takesIn = false;
  #farFault = false;
  #socketEnded = false;
  #endpointEnded = false;
  #fdClosed = false;
  // What the injector has done, at which byte of P: `{ kind, at, isFailure, code, meetsTickets }`.
  #injected = null;
  // The errors that the socket has told of.
  #errors = new Set();
  // JavaScript has let bytes wait, which an error then may destroy.
  #hasPaused = false;
  // A 'newSession' listener makes TLS stand still.
  #holdsTLS = false;
  // It has been written to, or spliced, after it had failed.
  #isUsedAfterError = false;
  // pipeToNative() has destroyed the socket for an error of the endpoint.
  #hasPipeFailed = false;
  // It has been written to when it may have failed, without having told yet.
  #hasWritten = false;
  #isPaused = false;
  #unshifts = false;
  // The peer, or the far side, does not take part in the handshake.
  #isMute = false;
  #isFarMute = false;
  // The peer does not read any more.
  #isDeaf = false;
  // Something else has been done to the TLS connection.
  #isFaulty = false;
  // The peer has reset the connection, and JavaScript had seen its end by then.
  #isResetBehindEnd = false;
  // It, or something else, has destroyed the socket, or the peer's connection.
  #isDestroyed = false;
  #hooks = new Map();
  #subscriptions = [];
  #negotiates = false;
  #empties = false;
  // Session tickets follow in this turn of the event loop.
  #sendsTickets = false;
  #finishes = false;
  // No splice begins any more.
  #ends = false;
  // Where the ciphertext of P is, as the injector counts it: [bytes, position].
  #marks = [];
  // How far it was read some time ago.
  #bytesRead = 0;
  #pWrites = 0;
  // Nobody knows how much has been taken of it.
  #lostP = false;
  #lostF = false;

  // `errorOfTwin()` resolves with the code that an injection comes to without a splice.
  constructor(program, sockets, errorOfTwin) {
    this.#config = program.config;
    this.#ops = program.ops;
    this.#sockets = sockets;
    this.#errorOfTwin = errorOfTwin;
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
    const splices = this.#splices.map(({ begun, state, handle, options, stats }) =>
      `${options.direction} ${begun ? '' : 'waiting '}${state} ${count(handle?.stats ?? stats)}`);
    return `at ${this.trace.at(-1)}; socket: ${say(this.#socket)}; peer: ${say(this.#peer)}; ` +
      `endpoint: ${say(this.#endpoint ?? this.#sink)}; far: ${say(this.#farReader)}, ${say(this.#farWriter)}; ` +
      `P ${this.#P.seen}/${this.#P.written}, F ${this.#F.seen}/${this.#F.written}; ${splices.join('; ')}`;
  }

  #fail(error) {
    this.#hasFailed = true;
    this.#reject(error);
  }

  #note(text) {
    this.trace.push(text);
    this.#progressed();
    this.#checkMemory();
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

  // Attaches a listener that unlisten() leaves there.
  #on(stream, event, listener) {
    stream.on(event, listener);
    if (!this.#listeners.has(stream))
      this.#listeners.set(stream, []);
    this.#listeners.get(stream).push([event, listener]);
  }

  // Everybody else loses theirs, Node included, whose renegotiate() would never call back.
  #unlisten(stream) {
    if (!stream || stream.destroyed || this.#negotiates)
      return;
    stream.removeAllListeners();
    for (const { 0: event, 1: listener } of this.#listeners.get(stream))
      stream.on(event, listener);
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
      mine = this.#bottom = this.#keep(accepted);
      mine.allowHalfOpen = halfOpen;
    } else {
      const isServer = role === 'client';
      const injects = this.#has('p.inject', 'p.hold', 'p.keyUpdate') ?
        { isServer, version, onKeyUpdate: this.#has('p.keyUpdate') ? this.#onKeyUpdate('p.keyUpdate') : null } : null;
      let injector;
      let below;
      let bottom;
      ({ raw: this.#raw, mine, theirs, bottom, below, injector } =
        await this.#connectBelow(under, halfOpen, 'peer reset', injects));
      this.#bottom = bottom;
      this.#below = below;
      this.#injector = injector;
    }

    this.#subscribe();
    await this.#connectEndpoint();
    let socket;
    if (role === 'client') {
      socket = sockets.tlsClient(mine, version);
      this.#peer = sockets.tlsServer(theirs, version);
    } else {
      const onNewSession = this.#hasCallback('session', 0) ? (...args) => this.#onNewSession(...args) : undefined;
      socket = role === 'listener' ? sockets.tlsListener(mine, version, onNewSession) : sockets.tlsServer(mine, version);
      this.#peer ??= sockets.tlsClient(theirs, version);
    }
    this.#injector?.listenTo(this.#peer);
    this.#listen('peer', this.#peer);
    // TLSWrap loses the close_notify of what is written and ended inside of
    // 'secure'.
    this.#peer.once('secure', () => setImmediate(this.#checked(() => this.#peerSecure = true)));
    if (socket instanceof Promise) {
      socket = await socket;
      this.#secure = true;
      this.#sendsTickets = true;
      setImmediate(() => this.#sendsTickets = false);
    }
    socket.allowHalfOpen = halfOpen;
    this.#socket = socket;
    this.#listen('socket', socket);
    this.#emitsClose = new Promise((resolve) => this.#on(socket, 'close', resolve));
    this.#read(this.#peer, () => this.#peerMayEnd(), (chunk) => this.#lostF || this.#peerGets.accept(chunk));
    if (this.#config.reader === 'readable')
      this.#read(socket, () => this.#socketMayEnd(), () => this.#takeReadable(), 'readable');
    else
      this.#read(socket, () => this.#socketMayEnd(), (chunk) => this.#onSocketChunk(chunk));
    this.#readFar();
    if (this.#source)
      this.#readEndpoint(this.#source);

    if (!this.#secure) {
      const secure = Promise.all([once(socket, 'secure'), this.#peer.encrypted && once(this.#peer, 'secure')]);
      this.#on(socket, 'secure', this.#checked(() => {
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

  #read(stream, mayEnd, onData, event = 'data') {
    this.#on(stream, event, this.#checked(onData));
    this.#on(stream, 'end', this.#checked(() => {
      this.trace.push(`end of ${stream.name}`);
      if (!mayEnd())
        fail(`${stream.name} sees an end that there is not`);
      this.#trigger(`${stream.name} end`);
    }));
  }

  #readFar() {
    this.#read(this.#farReader, () => this.#farMayEnd(), (chunk) => this.#farGets.accept(chunk));
  }

  // What TLS is to run over, and what is below the side that is not spliced.
  async #connectBelow(under, halfOpen, resetFault, injects = null) {
    const sockets = this.#sockets;
    const { 0: raw, 1: bottom } = await sockets.pair(under === 'unix' ? 'unix' : 'tcp');
    let mine = this.#keep(bottom);
    let theirs = this.#keep(raw);
    let below = null;
    let injector = null;
    if (this.#isOverJS(resetFault) || (injects && under === 'tls'))
      theirs = this.#keep(overJS(theirs));
    if (under === 'tls') {
      const outer = [sockets.tlsClient(theirs), sockets.tlsServer(mine)];
      // With an error of TLS it is not destroyed, and what is above it hears of
      // nothing.
      outer.forEach((socket) => this.#keep(socket).on('error', () => socket.destroy()));
      await Promise.all(outer.map((socket) => once(socket, 'secure')));
      ({ 0: theirs, 1: mine } = outer);
      below = mine;
    }
    theirs.allowHalfOpen = true;
    if (injects) {
      injector = new Injector(theirs, injects);
      theirs = this.#keep(injector.stream);
      theirs.allowHalfOpen = true;
    }
    if (under === 'js')
      mine = this.#keep(overJS(mine));
    else
      mine.allowHalfOpen = halfOpen;
    return { raw, mine, theirs, bottom, below, injector };
  }

  // Whether something is done in that callback, of the socket or (1) of the endpoint.
  #hasCallback(callback, side) {
    return this.#ops.some(({ 0: name, 1: first, 2: second }) =>
      (name === 'renegotiate' && first === side && second === callback) ||
      (name === 'on' && side === 0 && first === `socket ${callback}`));
  }

  // TLS stands still until `done()` is called. What JavaScript writes meanwhile is on its way in
  // the turn after that, and is lost if the socket is ended before, with a splice or without one.
  #onNewSession(id, session, done) {
    this.#trigger('socket session');
    if (!this.#socket) {
      done();
      return;
    }
    this.#holdsTLS = true;
    turn().then(done).then(turn).then(turn).then(this.#checked(() => this.#holdsTLS = false));
  }

  // What is published of the splices of this world.
  #subscribe() {
    for (const { 0: channel, 1: event } of Object.entries(kChannels)) {
      if (!this.#ops.some(({ 0: name, 1: of }) => name === 'on' && of === event))
        continue;
      const listener = ({ handle, socket }) => this.#checked(() => {
        if (socket !== this.#socket)
          return;
        if (this.#starting?.handle === handle)
          this.#started(this.#starting);
        this.#trigger(event);
      })();
      subscribe(channel, listener);
      this.#subscriptions.push(() => unsubscribe(channel, listener));
    }
  }

  #has(...names) {
    return this.#ops.some(({ 0: name }) => names.includes(name));
  }

  // A TLSSocket does not bear that its net.Socket is reset, spliced or not.
  #isOverJS(resetFault) {
    return this.#ops.some(({ 1: fault }) => fault === resetFault);
  }

  async #connectTLSEndpoint() {
    const { endpointVersion: version, endpointRole: role } = this.#config;
    const { endpointUnder, endpointHalfOpen, endpointEarly } = this.#config;
    const sockets = this.#sockets;
    const injects = this.#has('f.keyUpdate') ?
      { isServer: role === 'client', version, onKeyUpdate: this.#onKeyUpdate('f.keyUpdate') } : null;
    const { raw, mine, theirs, injector } =
      await this.#connectBelow(endpointUnder, endpointHalfOpen, 'far reset', injects);
    this.#farRaw = raw;
    this.#farInjector = injector;
    const far = role === 'client' ? sockets.tlsServer(theirs, version) : sockets.tlsClient(theirs, version);
    injector?.listenTo(far);
    this.#farReader = this.#farWriter = far;
    this.#listen('far', far);
    this.#endpointSecure = this.#farSecure = false;
    far.once('secure', () => setImmediate(this.#checked(() => this.#farSecure = true)));
    const endpoint = await (
      role === 'client' ? sockets.tlsClient(mine, version) :
        role === 'server' ? sockets.tlsServer(mine, version) : sockets.tlsListener(mine, version));
    endpoint.allowHalfOpen = endpointHalfOpen;
    this.#endpoint = this.#sink = this.#source = endpoint;
    this.#listen('endpoint', endpoint);
    if (role === 'listener')
      this.#endpointSecure = true;
    else
      this.#on(endpoint, 'secure', this.#checked(() => this.#endpointSecure = true));
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
      if (by === 'stream') {
        this.#sink = new net.Socket({ fd: sink.writer, readable: false });
        this.#source = new net.Socket({ fd: source.reader, writable: false });
        this.#listen('the sink', this.#sink);
        this.#listen('the source', this.#source);
      } else if (by === 'fd') {
        this.#sinkFd = sink.writer;
        this.#sourceFd = source.reader;
      } else {
        const { O_RDONLY, O_WRONLY, O_NONBLOCK } = fs.constants;
        this.#sinkFile = await fs.promises.open(sink.name, O_WRONLY | O_NONBLOCK);
        this.#sourceFile = await fs.promises.open(source.name, O_RDONLY | O_NONBLOCK);
        fs.closeSync(sink.writer);
        fs.closeSync(source.reader);
      }
      this.#farReader = new net.Socket({ fd: sink.reader, writable: false });
      this.#farWriter = new net.Socket({ fd: source.writer, readable: false });
      this.#listen('the far reader', this.#farReader);
      this.#listen('the far writer', this.#farWriter);
      return;
    }
    if (endpoint === 'tcp' && by === 'stream' && this.#config.connecting)
      return this.#connectLater();
    const { 0: far, 1: mine } = await this.#sockets.pair(endpoint, by === 'fd');
    mine.allowHalfOpen = endpointHalfOpen;
    this.#endpoint = mine;
    if (by === 'stream')
      this.#sink = this.#source = mine;
    this.#farReader = this.#farWriter = far;
    this.#listen('endpoint', mine);
    this.#listen('far', far);
  }

  async #connectLater() {
    this.#connecting = await this.#sockets.connecting();
    const { socket } = this.#connecting;
    socket.allowHalfOpen = this.#config.endpointHalfOpen;
    this.#endpoint = this.#sink = this.#source = socket;
    this.#listen('endpoint', socket);
    // Nobody is there, which is as if the far side had gone.
    this.#farReader = this.#farWriter = new net.Socket().destroy();
    this.#listen('far', this.#farReader);
  }

  // Resolves when the endpoint is connected, or never will be.
  #connectFar() {
    this.#connected ??= this.#connecting?.connect().then((far) => {
      if (far === null || this.#closed) {
        far?.destroy();
        return;
      }
      this.#note('the endpoint is connected');
      this.#farReader = this.#farWriter = far;
      this.#listen('far', far);
      this.#readFar();
    });
    return this.#connected;
  }

  #keep(stream) {
    if (stream) {
      this.#all.push(stream);
      this.#on(stream, 'error', () => {});
    }
    return stream;
  }

  #listen(name, stream) {
    this.#keep(stream);
    stream.name = name;
    if (name === 'socket')
      this.#on(stream, '_tlsError', this.#checked((err) => this.#onSocketError(err)));
    this.#on(stream, 'error', this.#checked((err) => {
      this.trace.push(`error of ${name}: ${endOf(err)}`);
      if (name === 'socket' && this.#isOfPipe(err)) {
        this.#hasPipeFailed = true;
        this.#trigger('socket error');
        return;
      }
      if (name === 'socket')
        this.#onSocketError(err);
      const ofTLS = name === 'peer' || name === 'socket';
      // s_client closes its pipes as it exits.
      if (stream.child && this.#socketEnded)
        return;
      if (name === 'peer')
        this.#notePeerReset();
      const isReset = this.#hasPipeFailed && kLost.includes(err.code);
      if (!(ofTLS ? this.#tlsFault || isReset : this.#endpointMayFail()))
        fail(`${name} fails: ${err.stack}`);
      this.#trigger(`${name} error`);
    }));
    this.#on(stream, 'close', this.#checked(() => {
      this.trace.push(`close of ${name}`);
      if (name === 'socket' && !stream.destroyed)
        fail('the socket is closed, but not destroyed');
      if (name === 'peer' && !stream.readableEnded)
        this.#notePeerReset();
      this.#trigger(`${name} close`);
    }));
  }

  // In TLS in TLS the outer connection is closed as soon as the inner one has
  // ended. Behind an injector the end of the outer one arrives after that and is
  // answered by a reset, which takes from the peer what it has not read. The peer
  // reports the reset, or is closed without a word. Both happen without a splice.
  // A peer that has much to read can be reset without an injector, too, which is
  // excused only before there has been a splice.
  #notePeerReset() {
    if ((this.#injector || this.#splices.length === 0) && this.#below && this.#socket.destroyed)
      this.#tlsFault = true;
  }

  #readEndpoint(stream) {
    this.#on(stream, 'data', this.#checked((chunk) => {
      this.#onEndpointData(chunk);
      this.#trigger('endpoint data');
    }));
    this.#on(stream, 'end', this.#checked(() => {
      this.trace.push('end of endpoint');
      if (!this.#F.ended && !this.#farFault && !this.#endpointMayFail())
        fail('the endpoint sees an end that there is not');
      this.#trigger('endpoint end');
    }));
    stream.resume();
  }

  // --- What may happen -------------------------------------------------------

  #endpointMayFail() {
    // With unread bytes in it, autoClose resets a socket.
    return this.#farFault || this.#splices.some(({ options, state, handle }) =>
      options.autoClose && (handle === null || state === 'stopping' || state === 'closed'));
  }

  // Tampering is no end, nor is a reset: what comes behind the error is another matter.
  #socketMayEnd() {
    return this.#P.ended || (this.#tlsFault && !((this.#isTampered() || this.#isReset()) && this.#errors.size === 0));
  }

  // Node tells only the outer TLSSocket of an error, and a Duplex can have one of its own.
  // Node says nothing of an empty write, of session tickets, or of that with which a socket is
  // shut down. If such a write has met the reset, an end takes its place, with a splice or
  // without one.
  #isReset() {
    return this.#injected?.kind === 'RST' && this.#config.under === 'tcp' && !this.#isDestroyed &&
      !this.#injected.meetsTickets && !this.#empties && !this.#socket.writableEnded;
  }

  #isTampered() {
    return this.#injected?.isFailure === true && this.#injected.kind !== 'RST' && !this.#isDestroyed;
  }

  #peerMayEnd() {
    return this.#socketEnded || this.#tlsFault || (this.#P.ended && !this.#config.halfOpen) ||
      ((this.#F.ended || this.#endpointMayFail()) &&
        this.#splices.some(({ hasOut, options }) => hasOut && options.end));
  }

  #farMayEnd() {
    return this.#endpointEnded || this.#fdClosed || this.#endpointMayFail() ||
      (this.#F.ended && !this.#config.endpointHalfOpen) ||
      ((this.#P.ended || (this.#tlsFault && !this.#isTampered()) || this.#splices.some(({ isLate }) => isLate)) &&
        this.#splices.some(({ hasIn, options }) => hasIn && options.end));
  }

  // --- Who has what ----------------------------------------------------------

  // Takes over from JavaScript.
  #begin(splice) {
    if (splice.begun || splice.state === 'closed')
      return;
    splice.begun = true;
    const socket = this.#socket;
    // It may be about to see that.
    splice.late = socket.readableEnded || (socket._readableState.ended && socket.readableLength === 0);
    if (splice.hasIn) {
      splice.partIn = this.#farGets.open(this.#P, this.#atP);
      splice.tookIn = socket.readableLength + (splice.head?.length ?? 0);
    }
    if (splice.hasOut) {
      splice.partOut = this.#peerGets.open(this.#F, this.#atF, () => splice.handle.stats.bytesOut);
      splice.tookOut = this.#S.written > 0 || this.#atF > 0 || this.#splices.some(({ partOut }) => partOut) ? Infinity :
        this.#source?.readableLength ?? this.#endpoint?.readableLength ?? 0;
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
      owner.fails ||= owner.stop === null && !owner.aborted;
      this.#settleIn();
    }
    this.#socketRead(chunk);
  }

  #takeReadable() {
    this.#trigger('socket readable');
    while (!this.#isPaused && !this.#socket.destroyed) {
      const chunk = this.#socket.read();
      if (chunk === null)
        return;
      this.#onSocketChunk(chunk);
    }
  }

  #onSocketChunk(chunk) {
    const half = this.#unshifts ? chunk.length >> 1 : 0;
    this.#onSocketData(chunk.subarray(half ? 0 : half, half || chunk.length));
    if (half) {
      this.#unshifts = false;
      // A stream that is destroyed, or has failed, does not take anything back.
      if (this.#socket.destroyed || this.#socket.errored)
        this.#onSocketData(chunk.subarray(half));
      else
        this.#socket.unshift(chunk.subarray(half));
    }
    this.#trigger('socket data');
  }

  // The next bytes that come, or those that wait, go back.
  #unshift() {
    const socket = this.#socket;
    const owner = this.#inOwner;
    if (owner?.begun)
      return;
    const chunk = this.#isPaused ? socket.read() : null;
    if (chunk !== null) {
      socket.unshift(chunk);
      // For that 'readable' is emitted, unless the socket has ended.
      this.#isPaused = socket._readableState.ended;
    } else {
      this.#unshifts = true;
    }
  }

  // What JavaScript has read of P, and not used, or null.
  #takeHead() {
    return this.#isPaused && this.#inOwner === null && !this.#socket._readableState.ended ?
      this.#socket.read() : null;
  }

  // A callback may come when the program waits for all to be read.
  #mustRead() {
    return this.#finishes || this.#negotiates || this.#awaitsAnswer;
  }

  #pauseEndpoint() {
    if (!this.#mustRead())
      this.#source?.pause();
  }

  #pauseSocket() {
    if (this.#mustRead())
      return;
    this.#hasPaused = true;
    if (this.#config.reader === 'readable')
      this.#isPaused = true;
    else
      this.#socket.pause();
  }

  #resumeSocket() {
    if (this.#config.reader !== 'readable') {
      this.#socket.resume();
    } else if (this.#isPaused) {
      this.#isPaused = false;
      this.#checked(() => this.#takeReadable())();
    }
  }

  #socketRead(chunk) {
    if (this.#lostP)
      return;
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
      if (!this.#endpoint?.encrypted || !this.#socket.writableEnded)
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

  // What the injector has said in the peer's place is its last word.
  #peerWrite(length) {
    if (!this.#canWrite(this.#peer) || this.#injected)
      return;
    this.#pWrites++;
    const chunk = this.#P.next(length);
    const end = this.#P.written;
    this.#peer.write(chunk, this.#checked(() => {
      if (this.#injector && !this.#injector.taken)
        this.#marks.push([this.#injector.bytes, end]);
    }));
  }

  // The next time that `event` happens, in the middle of it.
  #trigger(event) {
    const op = this.#hooks.get(event)?.shift();
    if (op === undefined || this.#closed || this.#hasFailed)
      return;
    if (kInside.has(event)) {
      this.#inside(op);
      return;
    }
    // After close_notify renegotiate() never calls back.
    if (this.#negotiates && op[0].endsWith('.end'))
      return;
    this.#note(`in '${event}': ${JSON.stringify(op)}`);
    this.#do(op).catch((err) => this.#fail(err));
  }

  #addHook(event, op) {
    if (!this.#hooks.has(event)) {
      this.#hooks.set(event, []);
      this.#listenFor(event);
    }
    this.#hooks.get(event).push(op);
  }

  // Adds the listeners for events that only hooks need.
  #listenFor(event) {
    const { 0: who, 1: name } = event.split(' ');
    const isClient = this.#config.role === 'client';
    const stream = who === 'socket' ? this.#socket : this.#sink;
    // On the socket of a server it would begin to look for the hello of a client.
    if (!['drain', 'finish', 'timeout', 'keylog', 'secure', ...(isClient ? ['session'] : [])].includes(name) || !stream)
      return;
    this.#on(stream, name, this.#checked(() => this.#trigger(event)));
    if (name === 'timeout')
      stream.setTimeout(kIdle);
  }

  #end(stream, writer) {
    stream.ended = true;
    if (this.#canWrite(writer))
      writer.end();
  }

  async #do([name, ...args]) {
    if (this.#connecting && (kNeedsFar.test(name) || (name === 'fault' && args[0].startsWith('far')))) {
      await this.#connectFar();
      if (this.#closed)
        return;
    }
    const socket = this.#socket;
    const endpoint = this.#sink;
    this.#settleClosed();
    switch (name) {
      case 'p.write': return this.#peerWrite(args[0]);
      case 'p.flood':
        for (let i = args[0]; i > 0; i--)
          this.#peerWrite(1_000_000);
        return;
      case 'p.inject': return this.#inject(args[0]);
      case 'p.hold':
        if (this.#secure && this.#peerSecure && !this.#negotiates && !this.#tlsFault)
          this.#injector?.hold();
        return;
      case 'f.write': return this.#write(this.#F, this.#farWriter, args[0]);
      case 's.write': return this.#socketWrite(args[0]);
      case 'e.write': this.#endpointWrite(endpoint, args[0]); return;
      case 'p.end':
        // Before its handshake is done it would cut that off. And it does not know of
        // an end that was injected in its place.
        if (this.#peerSecure && this.#injected === null)
          this.#end(this.#P, this.#peer);
        return;
      case 'f.end':
        if (this.#farSecure)
          this.#end(this.#F, this.#farWriter);
        return;
      case 's.cutOff': return this.#cutOff();
      case 'e.cutOff': return this.#cutOffEndpoint();
      case 's.end':
        if (!this.#secure || (this.#holdsTLS && socket.writableLength > 0))
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
      case 's.pause': this.#pauseSocket(); return;
      case 's.resume': this.#resumeSocket(); return;
      case 's.unshift': this.#unshift(); return;
      case 's.unlisten': this.#unlisten(socket); return;
      case 's.empty': return args[0] > 0 ? this.#empty(args[0]) : this.#emptyThrough();
      case 'e.connect': return;
      case 'e.pause': this.#pauseEndpoint(); return;
      case 'e.resume': this.#source?.resume(); return;
      case 'e.unlisten':
        this.#unlisten(this.#sink);
        if (this.#source !== this.#sink)
          this.#unlisten(this.#source);
        return;
      case 'fill': return this.#fill(args[0]);
      case 'spliceBelow': return this.#spliceBelow();
      case 'on': this.#addHook(args[0], args[1]); return;
      case 's.cork': socket.cork(); return;
      case 's.uncork': socket.uncork(); return;
      case 'e.cork': endpoint?.cork(); return;
      case 'e.uncork': endpoint?.uncork(); return;
      case 'start': return this.#start(args[0]);
      case 'stop': return this.#stop(args[0], args[1]);
      case 'abort': return this.#abort(args[0]);
      case 'closeFd': return this.#closeFd();
      case 'renegotiate': return this.#renegotiate(args[0] === 1 && endpoint?.encrypted === true, args[1], args[2], args[3]);
      case 'keyUpdate': return this.#keyUpdate(args[0]);
      case 'p.keyUpdate':
      case 'f.keyUpdate':
        return this.#updateKeys(name, args[0], args[1]);
      case 'turns':
        for (let i = args[0]; i > 0; i--) {
          await turn();
          this.#checkMemory();
        }
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
      this.#checkMemory();
      same = this.progress === last ? same + 1 : 0;
    }
  }

  #socketWrite(length) {
    const owner = this.#outOwner;
    const socket = this.#socket;
    if (socket.writableEnded || socket.destroyed || (owner && owner.handle === null))
      return;
    // Node has replaced its write() with one that knows of no splice. What is corked,
    // or waits for another write, is refused when that has returned.
    const isBuffered = socket.writableCorked > 0 || socket.writableLength > 0;
    if (owner && isBuffered && socket.readableEnded && !socket.allowHalfOpen)
      return;
    this.#isUsedAfterError ||= this.#errors.size > 0;
    this.#hasWritten ||= this.#injected !== null;
    try {
      const written = this.#checked(() => this.#trigger('socket written'));
      const write = { calls: 0, isBesideSplice: !!owner };
      this.#socket.write(this.#S.next(length), () => {
        write.calls++;
        written();
      });
      this.#writes.push(write);
    } catch (err) {
      this.#S.written -= length;
      // From the stop on it follows what the splice still sends, unless something has got
      // past the splice before.
      if (err.code !== 'ERR_INVALID_STATE' || owner === null || (owner.state === 'stopping' && !isBuffered))
        throw err;
      return;
    }
    if (owner && owner.state !== 'stopping') {
      // Only these give 'out' back before all is over.
      if (owner.options.end || !(this.#F.ended || this.#endpointMayFail()))
        fail('write() while the direction is spliced');
      this.#settleOut();
    }
    this.#peerGets.add(this.#S, this.#S.written - length, length);
  }

  #endpointWrite(endpoint, length) {
    const owner = this.#inOwner;
    if (!endpoint?.writable || this.#lostP || owner?.handle === null)
      return false;
    try {
      endpoint.write(this.#E.next(length));
    } catch (err) {
      this.#E.written -= length;
      // It is given back before the handle is closed, but after the socket.
      if (err.code !== 'ERR_INVALID_STATE' ||
          !this.#splices.some(({ hasIn, stats, error }) => hasIn && stats === null && error === null)) {
        throw err;
      }
      return false;
    }
    if (owner) {
      // Only these give it back before all is over.
      if (owner.state !== 'stopping' && (owner.options.end || !(this.#P.ended || this.#tlsFault)))
        fail('write() to the endpoint while it is spliced');
      this.#settleIn();
    }
    this.#farGets.add(this.#E, this.#E.written - length, length);
    return true;
  }

  // Until the kernel takes no more of it, be it by the endpoint's own writes, of
  // which some wait, or behind their back. Nobody reads it.
  async #fill(byJS) {
    const sink = this.#sink;
    const fd = this.#config.by === 'stream' ? sink._handle?.fd :
      this.#endpoint?._handle?.fd ?? this.#sinkFile?.fd ?? this.#sinkFd;
    if (this.#inOwner || this.#endpointMayFail() || this.#lostP || (sink && !sink.writable) ||
        (this.#endpoint && !this.#canWrite(this.#endpoint)) || !(this.#endpointSecure && this.#farSecure)) {
      return;
    }
    this.#farReader.pause();
    // A splice may have left a byte in libuv.
    if (sink && (byJS || sink.encrypted || sink.writableLength > 0 || sink._handle.writeQueueSize > 0)) {
      for (let same = 0; same < 3;) {
        if (sink.writableLength === 0) {
          same = 0;
          if (!this.#endpointWrite(sink, 250_000))
            return;
        } else {
          same++;
        }
        await turn();
        if (this.#inOwner || !sink.writable)
          return;
      }
      return;
    }
    // What the kernel has taken may yet move on to make room.
    for (let full = 0; full < 3 && fd >= 0 && !this.#endpoint?.destroyed;) {
      const position = this.#E.written;
      const chunk = this.#E.next(250_000);
      let written = 0;
      try {
        written = fs.writeSync(fd, chunk);
      } catch (err) {
        this.#E.written = position;
        if (err.code === 'EPIPE' || err.code === 'ECONNRESET')
          return;
        if (err.code !== 'EAGAIN')
          throw err;
      }
      this.#E.written = position + written;
      if (written > 0) {
        full = 0;
        this.#farGets.add(this.#E, position, written);
        continue;
      }
      full++;
      await turn();
      if (this.#closed || this.#inOwner || this.#endpointMayFail() || this.#endpointEnded)
        return;
    }
  }

  // Empty writes of JavaScript's: one in each turn.
  #empty(turns, until = () => false) {
    const socket = this.#socket;
    this.#empties = true;
    const step = () => {
      if (turns-- === 0 || this.#closed || this.#hasFailed || socket.destroyed || socket.writableEnded || until())
        return;
      this.#isUsedAfterError ||= this.#errors.size > 0;
      this.#hasWritten ||= this.#injected !== null;
      // A stream of JavaScript bears no alert beside it, nor an answer.
      const isAnswering = this.#config.under === 'js' && (this.#injected || this.#tlsFault || this.#mustAnswer);
      if (this.#secure && !this.#negotiates && !isAnswering)
        socket.write('', () => this.#trigger('socket written'));
      setImmediate(step);
    };
    // Not inside of 'data', where it would make OpenSSL read on.
    setImmediate(step);
  }

  // They do not keep a splice from what it does.
  async #emptyThrough() {
    const able = () => this.#outOwner?.begun && this.#outOwner.state === 'running' && !this.#tlsFault &&
      !this.#endpointMayFail() && !this.#socket.writableEnded && !this.#socket.destroyed;
    if (!able())
      return;
    this.#resume();
    const { written } = this.#F;
    const isThrough = () => this.#F.seen >= written || !able();
    this.#empty(Infinity, isThrough);
    await this.#until('the peer has got it beside empty writes', isThrough);
  }

  // In the peer's place, behind all that it has written.
  async #inject(kind) {
    const { under, role, version } = this.#config;
    const peer = this.#peer;
    const injector = this.#injector;
    const able = () => !this.#injected && !this.#tlsFault && !this.#P.ended && this.#peerSecure &&
      !this.#negotiates && this.#canWrite(peer);
    if (!injector || !able())
      return;
    await this.#until('the peer has written', () => peer.writableLength === 0 || !able());
    if (this.#closed || !able())
      return;
    if (kNeedsKeys.has(kind) && !injector.knowsKeys)
      kind = 'bad record';
    // A stream of JavaScript bears no answer beside an empty write.
    if (this.#empties && under === 'js' && !kEnds.has(kind))
      return;
    // A Unix socket has no RST.
    if (kind === 'RST' && under === 'unix')
      kind = 'FIN';
    const isFailure = !kEnds.has(kind);
    const at = this.#P.written;
    this.#injected = { kind, at, isFailure: false, code: null, meetsTickets: this.#sendsTickets };
    if (isFailure && kind !== 'RST') {
      this.#injected.code = await this.#errorOfTwin({ version, role, kind });
      // It may have failed by something else meanwhile.
      if (this.#closed || this.#tlsFault || this.#raw.destroyed)
        return;
    }
    this.#note(`injected after ${at} bytes: ${kind}`);
    this.#injected.isFailure = isFailure;
    if (isFailure)
      this.#tlsFault = true;
    else
      this.#P.ended = true;
    if (kind === 'RST') {
      injector.taken = true;
      this.#raw.resetAndDestroy();
    } else {
      injector.inject(kind);
    }
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
    // Not inside of another start(), which may report an error.
    if (this.#ends || this.#isStarting)
      return;
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
    if (!endpointHalfOpen && endpoint !== 'tls' && endpoint !== 'fifo' &&
        (direction !== 'duplex' || !this.#secure || this.#F.ended || this.#endpoint?.writableEnded)) {
      return;
    }
    const hasIn = direction !== 'out';
    const hasOut = direction !== 'in';
    const stream = by === 'stream' ? (hasIn ? this.#sink : this.#source) : undefined;
    const file = hasIn ? this.#sinkFile : this.#sourceFile;
    let fd;
    if (stream === undefined) {
      fd = endpoint !== 'fifo' ? this.#endpoint._handle?.fd : file?.fd ?? (hasIn ? this.#sinkFd : this.#sourceFd);
      if (!(fd >= 0) || (endpoint !== 'fifo' && this.#endpoint.writableLength > 0))
        return;
      fd = file ?? fd;
    }
    // What is over cannot be spliced.
    if ((hasIn && (this.#endpoint ?? this.#sink)?.writableEnded) ||
        (hasOut && (this.#endpoint ?? this.#source)?.readableEnded)) {
      return;
    }

    const refusal = this.#refusal(options, stream);
    // JSStreamSocket does not bear that TLS is ended during its handshake, spliced
    // or not.
    const autoClose = options.autoClose && !live && refusal === undefined && this.#endpointSecure &&
      (stream !== undefined || endpoint === 'fifo');
    const splice = new Splice({ ...options, autoClose });
    const { end, highWaterMark, signal, pipe } = options;
    if (signal) {
      splice.controller = new AbortController();
      splice.controller.signal.addEventListener('abort', this.#checked(() => this.#trigger('splice abort')));
    }
    const spliceOptions = {
      autoClose,
      end,
      ...(highWaterMark ? { highWaterMark } : {}),
      ...(signal ? { signal: splice.controller.signal } : {}),
    };
    if (pipe && refusal !== undefined)
      return;
    splice.head = options.head && hasIn ? this.#takeHead() : null;
    if (splice.head !== null)
      spliceOptions.head = splice.head;
    if (pipe) {
      this.#pipe(splice, stream ?? fd, { direction, ...spliceOptions });
      return;
    }
    try {
      splice.handle = this.#socket.spliceTo({ fd, stream, direction, ...spliceOptions });
      this.#watch(splice);
      if (splice.handle.state !== 'idle')
        fail(`a new splice is ${splice.handle.state}`);
      this.#isStarting = true;
      this.#starting = splice;
      this.#takesIn = splice.hasIn && this.#secure;
      if (splice.handle.start() !== splice.handle || !this.#isStarted(splice))
        fail(`after start() the splice is ${splice.state}`);
    } catch (err) {
      if (refusal === undefined || err.code !== (refusal ?? 'ERR_INVALID_STATE'))
        throw err;
      if (splice.handle) {
        splice.stop = splice.handle.stop();
        this.#splices.push(splice);
      }
      if (splice.head !== null)
        this.#socket.unshift(splice.head);
      return;
    } finally {
      this.#isStarting = this.#takesIn = false;
      this.#starting = null;
    }
    if (refusal)
      fail(`start() must throw ${refusal}`);
    // A subscriber of its channel may have heard of it before.
    if (!this.#splices.includes(splice))
      this.#started(splice);
  }

  // Under a TLS connection there is nothing to be taken.
  #spliceBelow() {
    const below = this.#below;
    if (!below || below.destroyed || !this.#sink || this.#sink.destroyed)
      return;
    try {
      below.spliceTo({ stream: this.#sink, direction: 'in' });
    } catch (err) {
      if (err.code === 'ERR_INVALID_STATE')
        return;
      throw err;
    }
    fail('what TLS runs over is spliced');
  }

  // It is over at once if TLS has failed, or a subscriber of its channel has ended it.
  #isStarted(splice) {
    const { state, stop, aborted } = splice;
    const isHeardOf = this.#splices.includes(splice);
    const mayBeOver = this.#tlsFault || (isHeardOf && (this.#endpointMayFail() || stop !== null || aborted));
    return state === 'running' || ((state === 'stopping' || state === 'closed') && mayBeOver);
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
    if (splice.options.autoClose && this.#config.endpoint === 'fifo' && this.#config.by === 'fd') {
      if (splice.hasIn)
        this.#sinkFd = -1;
      if (splice.hasOut)
        this.#sourceFd = -1;
    }
    this.#splices.push(splice);
    splice.isLate = this.#errors.size > 0;
    this.#isUsedAfterError ||= splice.isLate;
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
        if (error.name === 'AbortError')
          this.#checkAbort(splice, error);
        // A socket that has ended both ways destroys itself.
        const isLate = splice.late && error.code === 'ERR_STREAM_PREMATURE_CLOSE';
        if (!isLate && !this.#tlsFault && !this.#endpointMayFail() && !this.#isForEnded({ options }, error) && !this.#isEndedEarly(error))
          fail(`pipeToNative() fails: ${error.stack}`);
        const hasEnded = this.#socket.readableEnded && this.#socket.writableFinished;
        if (!isLate && !this.#tlsFault && !hasEnded && this.#socket.errored !== error)
          fail(`pipeToNative() fails with ${error}, and destroys the socket with ${this.#socket.errored}`);
        this.#checkError(splice, error);
        this.#tlsFault = true;
        this.#isDestroyed = true;
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

  #checkAbort(splice, { cause, stats }) {
    const { signal } = splice.controller;
    if (!splice.aborted || cause !== signal.reason || stats.reason !== 'aborted')
      fail(`pipeToNative() is aborted with ${cause} and ${JSON.stringify(stats)}`);
  }

  // 'error' at most once, then 'close' once, and the promise says the same.
  #watch(splice) {
    const { handle } = splice;
    let finished;
    if (this.#config.listen === 'finished')
      finished = handle.finished;
    else
      handle.on('error', this.#checked((err) => {
        this.#onError(splice, err);
        this.#trigger('splice error');
      }));
    let closed;
    splice.ended = new Promise((resolve) => closed = resolve);
    handle.on('close', this.#checked((stats) => {
      const settle = async () => {
        // Only its owner hears when a FileHandle is closed that the owner has begun to close.
        if (this.#config.by === 'file' && this.#fdClosed)
          await Promise.all(this.#closing);
        if (splice.options.autoClose && !this.#isEndpointClosed(splice))
          fail("'close' before that of the endpoint");
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
        this.#trigger('splice close');
      };
      if (handle.state !== 'closed')
        fail(`'close' of a splice that is ${handle.state}`);
      settle().catch((err) => this.#fail(err)).finally(() => {
        closed();
        this.#progressed();
      });
    }));
  }

  // What `autoClose` closes. Of a FIFO another one may have the number by now.
  #isEndpointClosed({ hasIn, hasOut }) {
    if (this.#sink)
      return (!hasIn || this.#sink.closed) && (!hasOut || this.#source.closed);
    const files = fs.readdirSync('/proc/self/fd').map((fd) => {
      try {
        return fs.readlinkSync(`/proc/self/fd/${fd}`);
      } catch {
        return '';
      }
    });
    // The far side has the other of two.
    const { 0: sink, 1: source } = this.#fifos;
    const isOpen = (fifo, stream) => files.filter((name) => name === fifo.name).length > (stream.destroyed ? 0 : 1);
    return (!hasIn || !isOpen(sink, this.#farReader)) && (!hasOut || !isOpen(source, this.#farWriter));
  }

  #onError(splice, err) {
    this.trace.push(`splice ${splice.options.direction} error: ${endOf(err)} ${err.syscall}`);
    if (splice.error !== null)
      fail(`a second error, ${err.stack}`);
    if (splice.stats !== null)
      fail("'error' after 'close'");
    splice.error = err;
    this.#checkError(splice, err);
    if (this.#tlsFault)
      return;
    if (!this.#endpointMayFail() && !this.#isForEnded(splice, err) && !this.#isEndedEarly(err))
      fail(`the splice fails: ${err.stack}`);
    if (err.code === 'ERR_STREAM_PREMATURE_CLOSE' || this.#isEndedEarly(err))
      return;
    const isItsOwn = [this.#endpoint, this.#sink, this.#source].some((stream) => stream?.errored === err);
    const ofTLS = this.#endpoint?.encrypted && this.#farFault && err.code?.startsWith('ERR_SSL_');
    // An end in the handshake of the endpoint is a failure, of which it does not say
    // itself that it is an error.
    if (this.#endpoint?.encrypted && !this.#endpointSecure && err.code === 'ECONNRESET')
      return;
    if (!isItsOwn && !ofTLS && (!['EPIPE', 'ECONNRESET'].includes(err.code) || !['read', 'write'].includes(err.syscall)))
      fail(`not an error of the endpoint: ${err.stack}`);
    // Handed back alive, if it has not come to its own end.
    if (this.#socket.destroyed && !(this.#socket.readableEnded && this.#socket.writableFinished))
      fail('the endpoint has failed, and the socket is destroyed');
  }

  // It is the TLS side's, as the socket reports it, or the endpoint's.
  #checkError(splice, err) {
    const isOfTLS = this.#isFailing() && this.#isOfInjection(err);
    if (this.#isFailing() && !isOfTLS && !splice.isLate &&
        !this.#endpointMayFail() && !this.#isForEnded(splice, err) && !this.#isEndedEarly(err)) {
      fail(`after '${this.#injected.kind}' the splice fails with ${err.stack}`);
    }
    this.#checkCode(err);
    if (splice.handle === null)
      return;
    if (splice.handle.errored !== err)
      fail(`the splice fails with ${err}, and handle.errored is ${splice.handle.errored}`);
    if (!['tls', 'endpoint'].includes(err.side))
      fail(`the side of ${err} is ${err.side}`);
    if (isOfTLS && !this.#endpointMayFail() && !this.#isForEnded(splice, err) && err.side !== 'tls')
      fail(`the side of ${err} is ${err.side}`);
  }

  // Of what comes to the same error in each case.
  #checkCode(err) {
    const { code, side } = err;
    if (side !== 'tls' || this.#isFaulty || (this.#socket.errored !== err && this.#endpointMayFail()))
      return;
    // Of a client Node has another text for it.
    if (this.#isMute && !this.#secure && code !== 'ECONNRESET')
      fail(`the end in the handshake is ${err.stack}`);
    if (this.#isResetBehindEnd && !kLost.includes(code))
      fail(`the reset behind close_notify is ${err.stack}`);
  }

  // What comes for a stream that JavaScript has ended, or Node without allowHalfOpen.
  #isForEnded({ options: { direction, end } }, { code, syscall }) {
    const endpoint = this.#sink;
    if (code === 'ERR_STREAM_PREMATURE_CLOSE') {
      // Another TLSSocket has ended both ways, and the peer does not know.
      if (endpoint?.encrypted)
        return endpoint.writableEnded && this.#F.ended && (direction === 'in' || (direction === 'duplex' && !end));
      // It has ended both ways, or the one that it has, and closes itself.
      return this.#endpointEnded && (this.#F.ended || this.#config.endpoint === 'fifo');
    }
    return code === 'EPIPE' && syscall === 'write' &&
      (endpoint?.writableEnded || (endpoint?.encrypted && this.#socket.writableEnded));
  }

  // JavaScript has ended the stream between spliceTo() and the end of the handshake, or its
  // connection.
  #isEndedEarly({ code }) {
    // What has come to its end closes itself.
    if (code === 'ERR_STREAM_PREMATURE_CLOSE')
      return this.#config.early && this.#config.endpoint === 'fifo' && (this.#F.ended || this.#endpointEnded);
    return code === 'ERR_INVALID_STATE' && (this.#config.early || this.#connecting) && this.#sink?.writableEnded;
  }

  // pipeToNative() destroys the socket with an error of the endpoint, and then rejects with it.
  #isOfPipe({ side }) {
    return side === 'endpoint' && this.#splices.some(({ handle, state }) => handle === null && state === 'running');
  }

  // Of TLS, once each, and behind every byte before it.
  #onSocketError(err) {
    if (this.#errors.has(err) || this.#isOfPipe(err))
      return;
    this.trace.push(`the socket reports ${endOf(err)}`);
    this.#errors.add(err);
    this.#isUsedAfterError ||= this.#socket.writableLength > 0;
    if (!this.#isFailing())
      return;
    if (this.#errors.size > 1) {
      // Node does not destroy it for an error of TLS. What is written to it then
      // fails, too.
      const isWritten = this.#isUsedAfterError || (this.#hasWritten && err.code === 'EPROTO');
      // What is below tells of its error, and then the write fails.
      const isBelow = this.#config.under === 'js' && kLost.includes(err.code);
      if (!isWritten && !isBelow)
        fail(`the socket reports a second error, ${err.stack}`);
      return;
    }
    if (!this.#isOfInjection(err))
      fail(`after '${this.#injected.kind}' the socket fails with ${err.stack}`);
    this.#checkDelivered();
  }

  // What the injector has done is to be reported as TLS would report it.
  #isFailing() {
    return this.#injected?.isFailure === true && !this.#isDestroyed;
  }

  #isOfInjection({ code }) {
    // A write comes before the bytes that are held.
    if (code === 'EPROTO' && this.#hasWritten)
      return true;
    // What Node has not been read for it asks OpenSSL for twice.
    if (code === 'ERR_SSL_RECORD_LAYER_FAILURE' && (this.#hasPaused || this.#hasWritten))
      return true;
    return this.#injected.kind === 'RST' ? kLost.includes(code) : code === this.#injected.code;
  }

  // Every byte before the failure that has been there to be read.
  #checkDelivered() {
    const owner = this.#inOwner;
    if (this.#hasWritten)
      return;
    // 'readable' is emitted later than what it tells of was there. What JavaScript has
    // let wait is the splice's as soon as there is one.
    const hasAll = owner?.begun && owner.handle !== null && owner.state !== 'closed' && owner.stop === null &&
      !owner.aborted && !this.#endpointMayFail();
    const mayWait = this.#hasPaused || this.#config.reader === 'readable';
    if ((mayWait && !hasAll && !this.#takesIn) || this.#lostP || (owner?.begun && owner.handle === null))
      return;
    const delivered = this.#atP + (owner?.begun ? owner.handle.stats.bytesIn : 0);
    const { kind, at } = this.#injected;
    if (kind !== 'RST') {
      if (delivered !== at)
        fail(`'${kind}' after ${at} bytes is reported after ${delivered}`);
      return;
    }
    // What else has read it may lose it.
    if (!['tcp', 'unix'].includes(this.#config.under))
      return;
    // A write that fails loses what the kernel has yet to give.
    const bytesRead = this.#bytesRead;
    const arrived = this.#marks.findLast(({ 0: bytes }) => bytes <= bytesRead)?.[1] ?? 0;
    if (delivered < arrived)
      fail(`of at least ${arrived} bytes that were there before the reset ${delivered} are delivered`);
  }

  // When all is over.
  async #reckon() {
    // Without a splice it is up to Node.
    if (!this.#isFailing() || this.#splices.length === 0)
      return;
    // The kernel tells of a reset once. If TLS was just writing, Node makes nothing
    // of it, and then there is an end.
    const isOver = () => this.#errors.size > 0 || !this.#isFailing() ||
      (this.#injected.kind === 'RST' && this.#socket.readableEnded) ||
      this.#splices.some(({ handle, error }) => handle === null && error !== null);
    await this.#until(`the socket reports '${this.#injected.kind}'`, isOver);
    if (this.#isFailing() && this.#errors.size === 0)
      this.#checkDelivered();
    if (this.#isTampered() && this.#config.reader === 'readable' && !this.#hasPaused && !this.#lostP) {
      const { at } = this.#injected;
      await this.#until(`the bytes before '${this.#injected.kind}' are read`,
                        () => this.#atP === at || this.#socket.destroyed);
    }
  }

  // What has been read and not been passed on is held somewhere.
  #checkMemory() {
    this.#bytesRead = this.#bottom?.bytesRead ?? 0;
    this.#checkTaken();
    const owner = this.#inOwner;
    if (!owner?.begun || owner.handle === null || owner.state === 'closed' || !this.#bottom)
      return;
    // After TLS has failed, here or below, Node reads on.
    if (this.#tlsFault && !(this.#injected && this.#errors.size === 0))
      return;
    const { bytesIn, peakBufferedIn } = owner.handle.stats;
    const { bytesRead } = this.#bottom;
    // That of the handshakes, and what makes a record of bytes.
    const overhead = 40_000 + 64 * this.#pWrites + 0.1 * bytesRead;
    const held = bytesRead - overhead - this.#atP - bytesIn;
    const most = owner.options.highWaterMark || 262144;
    if (held > most + owner.tookIn + kAbove)
      this.#fail(new Failure(`${held} bytes are held, and highWaterMark is ${most}`));
    else if (held > peakBufferedIn + owner.tookIn + kAbove)
      this.#fail(new Failure(`${held} bytes are held, and peakBufferedIn is ${peakBufferedIn}`));
  }

  // Likewise of what waits for the peer.
  #checkTaken() {
    const owner = this.#outOwner;
    if (!owner?.begun || owner.handle === null || owner.state === 'closed' || owner.tookOut === Infinity)
      return;
    const waits = this.#bottom?._handle?.writeQueueSize ?? 0;
    const most = owner.options.highWaterMark || 262144;
    if (waits > most + 1.3 * owner.tookOut + 131072)
      this.#fail(new Failure(`${waits} bytes wait for the peer, and highWaterMark is ${most}`));
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
    // what JavaScript has held, and what has been read ahead as ciphertext: a stream
    // of JavaScript, or TLS, pushes what it has read before it stops. Of streams of
    // JavaScript there are two, one over the other, and each has up to two chunks of
    // 64 KiB, beside the one that is on its way.
    const most = Math.max(options.highWaterMark || 262144, 64);
    const ahead = kReadAhead[this.#config.under] * 65536;
    if ((stats.peakBufferedIn > most + splice.tookIn + ahead && !splice.isLate) ||
        stats.peakBufferedOut > most + 1.3 * splice.tookOut) {
      fail(`more is held than highWaterMark ${most}: ${JSON.stringify(stats)}`);
    }
    switch (reason) {
      case 'end':
        if (this.#isTampered() && hasIn && !splice.late && !splice.isLate && partIn !== null)
          fail(`reason 'end' after '${this.#injected.kind}'`);
        if ((this.#isMute && !this.#secure) || (this.#isFarMute && !this.#endpointSecure))
          fail("reason 'end' of a TLS connection that has never been");
        if (this.#tlsFault)
          break;
        if (hasIn) {
          if (!this.#P.ended)
            fail("reason 'end', but the peer has not ended");
          // Those without are called by what comes at last.
          const isNotified = !this.#injected?.kind.endsWith('FIN') || this.#injected.kind.startsWith('user');
          if (closeNotify !== isNotified)
            fail(`stats.closeNotify is ${closeNotify}`);
          if (partIn !== null && this.#atP !== this.#P.written)
            fail(`reason 'end' after ${this.#atP} bytes of ${this.#P.written}`);
          // The splice ends it when it has sent everything.
          if (this.#endpoint?.encrypted && this.#endpoint.destroyed && !this.#endpoint.writableEnded && options.end)
            fail("reason 'end', but the endpoint was destroyed before it had sent everything");
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
        if (splice.error !== null && splice.error !== this.#socket.errored && !this.#errors.has(splice.error))
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
    if (splice.fails && splice.error === null && reason !== 'destroyed')
      fail(`it has given bytes back on its own, the reason is '${reason}', and there is no error`);
    if (splice.handle && splice.error === null && splice.handle.errored !== null)
      fail(`no 'error', and handle.errored is ${splice.handle.errored}`);
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
    if (wait) {
      await promise;
      this.#checkWaiting();
    }
  }

  // What a splice has accepted and the peer has not read JavaScript has written,
  // so to speak. Records that nobody has written are small.
  #checkWaiting() {
    this.#settleClosed();
    const socket = this.#socket;
    const waits = this.#bottom?._handle?.writeQueueSize ?? 0;
    if (this.#outOwner === null && waits > 2000 && socket.writableLength === 0 &&
        !socket.writableEnded && !socket.destroyed) {
      fail(`${waits} bytes wait for the peer, and writableLength is 0`);
    }
  }

  #abort(number) {
    const able = this.#splices.filter(({ state, controller }) => state !== 'closed' && controller !== null);
    const splice = able[number % able.length];
    if (splice !== undefined)
      this.#abortSplice(splice);
  }

  // pipeToNative() destroys the socket.
  #abortSplice(splice) {
    splice.aborted = true;
    if (splice.handle === null)
      this.#isDestroyed = this.#tlsFault = true;
    splice.controller.abort();
  }

  #closeFds() {
    for (const fd of [this.#sinkFd, this.#sourceFd].filter((fd) => fd >= 0))
      fs.closeSync(fd);
    this.#sinkFd = this.#sourceFd = -1;
    // A splice may be closing them as well.
    for (const file of [this.#sinkFile, this.#sourceFile])
      this.#closing.push(file?.close());
  }

  // The owner of the descriptor closes it. That is nothing to the splice.
  #closeFd() {
    if (this.#config.endpoint === 'fifo' && this.#config.by !== 'stream') {
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
    // A splice reads nothing before the handshake of the other TLSSocket, which never
    // comes if the peer of that one has gone.
    const isSpliced = (ofEndpoint ? this.#outOwner : this.#inOwner) !== null;
    if (isSpliced && !(this.#secure && this.#endpointSecure))
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
  async #renegotiate(...args) {
    this.#negotiates = true;
    await this.#renegotiateNow(...args);
    this.#negotiates = false;
  }

  async #renegotiateNow(ofEndpoint, event, op, byServer = false) {
    const { version, role, under, endpointVersion, endpointRole, endpointUnder } = this.#config;
    if ((ofEndpoint ? endpointVersion : version) !== 'TLSv1.2' || !this.#canRenegotiate(ofEndpoint))
      return;
    // OpenSSL does not take data while it waits for the other's handshake, and
    // both sides have to read.
    this.#resume();
    await this.#quiet();
    // More of them are an attack for Node, to which that of a server begins twice.
    if (!this.#canRenegotiate(ofEndpoint) || (this.#renegotiated += byServer ? 2 : 1) > 2)
      return;
    const { 0: mine, 1: theirs } = ofEndpoint ? [this.#endpoint, this.#farReader] : [this.#socket, this.#peer];
    const isMine = ((ofEndpoint ? endpointRole : role) === 'client') !== byServer;
    // renegotiate() writes nothing, to begin with it. Until JSStreamSocket has done
    // that it takes no other write, and an answer of OpenSSL's ends the process.
    const isOverJS = isMine ? (ofEndpoint ? endpointUnder : under) === 'js' :
      this.#isOverJS(ofEndpoint ? 'far reset' : 'peer reset');
    if (isOverJS || (!isMine && this.#injector && !ofEndpoint))
      return;
    let done = false;
    const inside = this.#checked(() => this.#inside(op));
    const isClient = (ofEndpoint ? endpointRole : role) === 'client';
    // That of a server is the server's.
    const isOfServer = event === 'session' && !isClient;
    if (isOfServer && !ofEndpoint)
      this.#addHook('socket session', op);
    else if (event && !isOfServer)
      mine.once(event, inside);
    const first = isMine ? mine : theirs;
    first.renegotiate({ rejectUnauthorized: false }, this.#checked((err) => {
      done = true;
      if (err && !(ofEndpoint ? this.#endpointMayFail() : this.#tlsFault))
        fail(`renegotiate() fails: ${err.stack}`);
    }));
    // There is no callback when the socket is destroyed meanwhile.
    await this.#until('the renegotiation is done', () => done || mine.destroyed || theirs.destroyed);
    mine.removeListener(event, inside);
    if (isOfServer)
      this.#hooks.delete('socket session');
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

  // By an injector, in the name of the peer or of the far side. A request is answered by the
  // other side when it has read that far.
  async #updateKeys(side, isRequest, waits) {
    const isPeer = side === 'p.keyUpdate';
    const injector = isPeer ? this.#injector : this.#farInjector;
    const writer = isPeer ? this.#peer : this.#farWriter;
    const reader = isPeer ? this.#socket : this.#endpoint;
    const isSecure = isPeer ? this.#secure && this.#peerSecure : this.#endpointSecure && this.#farSecure;
    const isOver = () => this.#tlsFault || this.#endpointMayFail() || !this.#canWrite(reader) ||
      (isPeer ? this.#peerMayEnd() : this.#farMayEnd());
    const hasEnded = isPeer ? this.#P.ended || this.#injected !== null : this.#F.ended;
    if (!injector?.canUpdate || !isSecure || hasEnded || !this.#canWrite(writer) || isOver())
      return;
    // With one more KeyUpdate OpenSSL answers a request even behind close_notify, which may be
    // after the end of the stream below.
    if (this.#isAsked[side])
      return;
    // A stream of JavaScript bears no answer beside an empty write.
    if (isRequest && isPeer && this.#config.under === 'js') {
      if (this.#empties)
        return;
      this.#mustAnswer = true;
    }
    const answered = this.#keyUpdates[side];
    this.#isAsked[side] = isRequest;
    injector.updateKeys(isRequest);
    if (!isRequest || !waits || isOver())
      return;
    this.#awaitsAnswer = true;
    this.#resume();
    await this.#answer(isPeer, () => this.#keyUpdates[side] > answered || isOver());
    this.#awaitsAnswer = false;
  }

  // OpenSSL answers before what it has to send next. That may be sent before the request is
  // read, which is soon after what comes before it.
  async #answer(isPeer, isDone) {
    const before = isPeer ? this.#P : this.#F;
    await this.#until('all before the KeyUpdate is read', () => before.seen === before.written || isDone());
    for (let i = 0; i < kAnswers; i++) {
      await this.#quiet();
      if (isDone() || !this.#writeBack(isPeer))
        return;
    }
    await this.#until('the KeyUpdate is answered', isDone);
  }

  // Returns whether there is more to be sent to the peer now, or to the far side.
  #writeBack(isPeer) {
    const streams = [this.#F, this.#S, this.#P, this.#E];
    const count = () => streams.reduce((sum, { written }) => sum + written, 0);
    const before = count();
    if (isPeer && this.#outOwner)
      this.#write(this.#F, this.#farWriter, 1);
    else if (isPeer)
      this.#socketWrite(1);
    else if (this.#inOwner)
      this.#peerWrite(1);
    else
      this.#endpointWrite(this.#sink, 1);
    return count() > before;
  }

  #onKeyUpdate(side) {
    return this.#checked(() => {
      this.trace.push(`${side} is answered`);
      this.#keyUpdates[side]++;
      this.#isAsked[side] = false;
    });
  }

  // JavaScript ends the socket, whose handshake will never be done.
  #cutOff() {
    if (!this.#isMute || this.#secure || this.#socket.writableEnded || this.#socket.destroyed)
      return;
    this.#socketEnded = true;
    this.#socket.end();
  }

  #cutOffEndpoint() {
    if (!this.#isFarMute || this.#endpointSecure || !this.#canWrite(this.#endpoint))
      return;
    this.#endpointEnded = true;
    this.#endpoint.end();
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
    if (kind.startsWith('socket') || (kind.startsWith('peer') && kind !== 'peer reset behind the end'))
      this.#isDestroyed = true;
    this.#isFaulty ||= /^(peer|socket)/.test(kind) && !kMild.has(kind);
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
        if (this.#empties && this.#config.under === 'js')
          return;
        this.#tlsFault = true;
        if (this.#raw.writable)
          this.#raw.write('This is not a record of TLS.');
        return;
      case 'peer mute':
        // Nothing of it arrives any more, so that the handshake is never done.
        if (this.#secure || this.#peerSecure)
          return;
        this.#tlsFault = this.#isMute = true;
        this.#raw.pause();
        this.#raw._handle?.readStop();
        return;
      case 'peer garbage below':
        // Of TLS in TLS, whose peer does not hear the answer. Behind the FIN of the inner connection, which is the
        // close_notify of the outer one, nobody reads any more, so that garbage there would be no error.
        if (!this.#below || !this.#raw.writable || this.#injected?.kind.endsWith('FIN'))
          return;
        this.#tlsFault = this.#isDeaf = true;
        this.#raw.pause();
        this.#raw._handle.readStop();
        this.#raw.write('This is not a record of TLS.');
        return;
      case 'peer FIN':
        if (this.#isMute && !this.#secure)
          this.#raw.end();
        return;
      case 'far mute':
        if (!this.#farRaw || this.#endpointSecure || this.#farSecure)
          return;
        this.#farFault = this.#isFarMute = true;
        this.#farRaw.pause();
        this.#farRaw._handle?.readStop();
        return;
      case 'far FIN':
        if (this.#isFarMute && !this.#endpointSecure)
          this.#farRaw.end();
        return;
      case 'peer reset behind the end':
        if (this.#injected?.kind !== 'close_notify' || !this.#socket.readableEnded || this.#raw.destroyed)
          return;
        this.#tlsFault = this.#isResetBehindEnd = true;
        reset(this.#raw);
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
        for (const stream of [this.#sink, this.#source]) {
          if (stream) {
            this.#farFault = true;
            stream.destroy(kind === 'endpoint destroy' ? undefined : new Error('destroyed on purpose'));
          }
        }
        return;
      case 'endpoint refused':
        if (this.#connecting && !this.#connected) {
          this.#farFault = true;
          this.#connecting.refuse(new Error('refused on purpose'));
        }
        return;
      case 'socket destroy':
        this.#tlsFault = true;
        socket.destroy();
        this.#mustClose();
        return;
      case 'socket destroy error':
        this.#tlsFault = true;
        socket.destroy(new Error('destroyed on purpose'));
        this.#mustClose();
        return;
      default:
        throw new Error(`no such fault: ${kind}`);
    }
  }

  // Nothing is waited for once the socket is destroyed, but another TLSSocket that
  // has got all of it, and the connection of an endpoint, if the socket had ended both ways.
  async #mustClose() {
    const { readableEnded, writableFinished } = this.#socket;
    const splices = this.#splices.filter(({ handle, state }) => handle !== null && state !== 'idle');
    if (this.#config.endpoint === 'tls' || (this.#sink?.connecting && readableEnded && writableFinished))
      return;
    // A thread closes a FileHandle.
    if (this.#config.by === 'file' && splices.some(({ options }) => options.autoClose))
      return;
    for (let i = 0; i < kTurnsToClose; i++)
      await turn();
    for (const { state } of splices) {
      if (state !== 'closed')
        this.#fail(new Failure(`the socket was destroyed ${kTurnsToClose} turns ago, and the splice is ${state}`));
    }
  }

  // --- How it ends -----------------------------------------------------------

  #resume() {
    this.#injector?.release();
    this.#connectFar();
    // One that is mute would go on with the handshake, and one that is deaf would hear
    // the alert and close the connection, which ends what is above it.
    if ((!this.#isMute || this.#secure) && !this.#isDeaf)
      this.#peer.resume();
    if (!this.#isFarMute || this.#endpointSecure)
      this.#farReader.resume();
    this.#source?.resume();
    this.#resumeSocket();
    for (const stream of [this.#socket, this.#sink]) {
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
    this.#finishes = true;
    this.#resume();
    await this.#connected;
    if (!this.#tlsFault)
      await this.#until('the handshake is done', () => this.#tlsFault || (this.#secure && this.#peerSecure));
    if (!this.#endpointMayFail()) {
      await this.#until('that of the endpoint is done',
                        () => this.#endpointMayFail() || (this.#endpointSecure && this.#farSecure));
    }
    // TLSWrap loses what it has yet to decrypt when it is shut down inside of
    // 'secure'.
    await turn();
    await this.#until('TLS goes on', () => !this.#holdsTLS || this.#tlsFault);
    if (finish === 'destroy') {
      this.#fault('socket destroy');
    } else if (finish === 'stop') {
      for (const splice of this.#splices) {
        if (splice.handle)
          splice.stop ??= splice.handle.stop();
        else if (splice.controller)
          this.#abortSplice(splice);
      }
      await this.#until('all are stopped', () =>
        this.#splices.every(({ state, stop, aborted }) => state === 'closed' || !(stop || aborted)));
      await this.#readOn();
    }
    if (this.#injected?.isFailure)
      this.#peer.end();
    else
      this.#end(this.#P, this.#peer);
    this.#end(this.#F, this.#farWriter);
    // Once both sides have ended, the splices are over by themselves.
    if (this.#isMute && this.#secure)
      unmute(this.#raw);
    if (this.#isFarMute && this.#endpointSecure)
      unmute(this.#farRaw);
    if (this.#isMute && !this.#secure) {
      this.#raw.end();
      this.#cutOff();
      await this.#until('the end in the handshake closes the splices', () => this.#allClosed());
    }
    if (this.#isFarMute && !this.#endpointSecure) {
      this.#farRaw.end();
      this.#cutOffEndpoint();
      await this.#until("the end in the endpoint's handshake closes the splices", () => this.#allClosed());
    }
    // A handshake that cannot be finished has no end of its own.
    if (this.#tlsFault && !this.#secure)
      socket.destroy();
    if (this.#endpointMayFail() && !this.#endpointSecure)
      this.#endpoint.destroy();
    await this.#until('the splices are closed', () => this.#allClosed());
    await Promise.all(this.#splices.map(({ ended }) => ended));
    this.#settleClosed();
    this.#ends = true;
    await this.#reckon();
    this.#socketEnded = true;
    if (!this.#socket.writableEnded && !this.#socket.destroyed)
      this.#socket.end();

    await this.#finishEndpoint();
    await this.#finishSocket();
    if (!this.#tlsFault && !this.#endpointMayFail()) {
      for (const stream of [this.#peer, socket, this.#endpoint, this.#sink, this.#source, this.#farReader, this.#farWriter]) {
        if (stream)
          await this.#until(`${stream.name} is closed`, () => stream.closed || this.#tlsFault || this.#endpointMayFail());
      }
    }
  }

  // JavaScript has what it had before, and needs no end for that.
  async #readOn() {
    await Promise.all(this.#splices.map(({ stop, ended }) => stop && ended));
    this.#settleClosed();
    const isOver = () => this.#tlsFault || this.#endpointMayFail() || this.#socket.destroyed;
    // Listeners may have started another splice.
    await this.#until('JavaScript reads the socket', () =>
      this.#inOwner !== null || this.#atP === this.#P.written || isOver());
    await this.#until('JavaScript reads the endpoint', () =>
      this.#outOwner !== null || !this.#source || this.#atF === this.#F.written || isOver());
  }

  // JavaScript has the endpoint again, reads what is left, and ends it.
  async #finishEndpoint() {
    const { endpoint, by } = this.#config;
    this.#endpointEnded = true;
    if (endpoint === 'fifo' && by === 'stream') {
      this.#sink.end();
    } else if (endpoint === 'fifo') {
      await this.#sinkFile?.close();
      if (this.#sourceFile && this.#sourceFile.fd >= 0) {
        // A net.Socket closes its descriptor itself.
        this.#sourceFd = fs.openSync(this.#fifos[1].name, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
        await this.#sourceFile.close();
      }
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
    const fails = () => this.#endpointMayFail();
    await this.#until('the far side has it all', () =>
      (this.#farGets.missing === 0 && far.readableEnded) || fails());
    if (!this.#tlsFault)
      await this.#until('the source is read', () => this.#atF === this.#F.written || this.#tlsFault || fails());
  }

  async #finishSocket() {
    if (this.#tlsFault)
      return;
    const socket = this.#socket;
    await this.#until('the socket is read', () =>
      (this.#atP === this.#P.written && socket.readableEnded) || this.#tlsFault);
    await this.#until('the peer has it all', () =>
      (this.#peerGets.missing === 0 && this.#peer.readableEnded) || this.#tlsFault);
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

  // A socket that has closed has called back each write once. Node itself does not always if TLS, or that of a
  // TLSSocket below, has failed. And TLSWrap::Destroy() does not finish an empty write: what is written behind one is
  // lost if the socket is destroyed before the stream below has taken the empty write. A TLSSocket below takes some
  // turns for that. A stream of JavaScript below does not take it between its 'close' and the next turn.
  async #checkWrites() {
    if (this.#isDeaf || (this.#empties && this.#config.under === 'js') || this.#writes.length === 0)
      return;
    await this.#emitsClose;
    await turn();
    const mayBeLost = this.#injected?.isFailure || (this.#empties && this.#config.under === 'tls');
    const wrong = this.#writes.filter(
      ({ calls, isBesideSplice }) => calls !== 1 && (isBesideSplice || !mayBeLost));
    if (wrong.length > 0)
      fail(`${wrong.length} of ${this.#writes.length} writes are not called back once`);
  }

  async #cleanUp() {
    for (const { handle } of this.#splices)
      handle?.stop();
    for (const end of this.#subscriptions)
      end();
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
    await this.#connected;
    await Promise.all(this.#closing);
    if (!this.#hasFailed)
      await this.#checkWrites();
    if (!this.#hasFailed)
      this.#fifos.forEach((fifo) => this.#sockets.giveBack(fifo));
  }
}

module.exports = { World };
