'use strict';

// Pairs of connected streams, of all the kinds that a program can ask for.

const { spawn, spawnSync } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const path = require('path');
const { Duplex } = require('stream');
const tls = require('tls');

// A stream in JavaScript over a net.Socket, or two of them: TLS over it goes
// through JSStreamSocket. It does not destroy itself, since the TLSSocket would
// be destroyed with it, whatever that has not passed on yet.
function overJS(reader, writer = reader) {
  const stream = new Duplex({
    autoDestroy: false,
    read() { reader.resume(); },
    write(chunk, encoding, callback) { writer.write(chunk, callback); },
    final(callback) { writer.end(callback); },
    destroy(err, callback) {
      reader.destroy();
      writer.destroy();
      callback(err);
    },
  });
  reader.on('data', (chunk) => {
    if (!stream.push(chunk))
      reader.pause();
  });
  reader.on('end', () => stream.push(null));
  reader.on('error', (err) => stream.destroy(err));
  reader.on('close', () => {
    if (!reader.readableEnded)
      stream.destroy();
  });
  return stream;
}

class Sockets {
  #directory;
  #servers = new Map();
  #queue = Promise.resolve();
  #fifos = [];
  #fifoCount = 0;
  #contexts = new Map();
  #credentials;

  constructor(directory, { key, cert }) {
    this.#directory = directory;
    this.#credentials = { key, cert };
  }

  // All of them at the beginning, so that what is open later is known.
  async listen() {
    for (const kind of ['tcp', 'unix']) {
      for (const pauseOnConnect of [false, true]) {
        const name = `${kind} ${pauseOnConnect}`;
        const server = net.createServer({ allowHalfOpen: true, pauseOnConnect });
        server.listen(kind === 'unix' ? path.join(this.#directory, `${process.pid} ${name}`) :
          { host: '127.0.0.1', port: 0 });
        await once(server, 'listening');
        this.#servers.set(name, server);
      }
    }
  }

  // One after the other: of Unix sockets nothing else tells who is whose.
  #accept(kind, pauseOnConnect, connect) {
    const pair = this.#queue.then(async () => {
      const server = this.#servers.get(`${kind} ${pauseOnConnect}`);
      const accepted = once(server, 'connection');
      const connected = connect(server.address());
      return [await connected, (await accepted)[0]];
    });
    this.#queue = pair.catch(() => {});
    return pair;
  }

  // [connected, accepted]; with `paused`, nobody has read from the second one.
  pair(kind, paused = false) {
    return this.#accept(kind, paused, async (address) => {
      const socket = net.connect(kind === 'unix' ? { path: address, allowHalfOpen: true } :
        { host: address.address, port: address.port, allowHalfOpen: true });
      await once(socket, 'connect');
      return socket;
    });
  }

  // A socket that is connecting to a server of its own, and how that goes on: `connect()`
  // resolves with the other side, or with null if the socket is destroyed before there is
  // one; `refuse(error)` fails the look-up of the name.
  async connecting() {
    const server = net.createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { address, port } = server.address();
    const { promise: found, resolve: find } = Promise.withResolvers();
    const socket = net.connect({
      host: 'far.example',
      port,
      allowHalfOpen: true,
      lookup: (name, { all }, callback) => found.then((err) => {
        if (err)
          callback(err);
        else if (all)
          callback(null, [{ address, family: 4 }]);
        else
          callback(null, address, 4);
      }),
    });
    const gone = new Promise((resolve) => socket.once('close', () => resolve(null)));
    gone.then(() => server.close());
    const connect = async () => {
      if (socket.destroyed)
        return null;
      // The far side may be there before the socket emits 'connect', for which reads and writes
      // of the socket wait.
      const connection = once(server, 'connection').then(({ 0: far }) => far);
      const connected = new Promise((resolve) => socket.once('connect', resolve));
      find(null);
      const far = await Promise.race([connected.then(() => connection), gone]);
      // A splice may destroy the socket when that is connected.
      if (far === null)
        connection.then((far) => far.destroy());
      server.close();
      return far;
    };
    return { socket, connect, refuse: find };
  }

  context(options) {
    const name = JSON.stringify(options);
    if (!this.#contexts.has(name))
      this.#contexts.set(name, tls.createSecureContext({ ...options, ...this.#credentials }));
    return this.#contexts.get(name);
  }

  tlsServer(stream, version) {
    const secureContext = this.context({ minVersion: version, maxVersion: version });
    return new tls.TLSSocket(stream, { isServer: true, secureContext });
  }

  tlsClient(stream, version) {
    const secureContext = this.context({ minVersion: version, maxVersion: version });
    return tls.connect({ socket: stream, secureContext, rejectUnauthorized: false });
  }

  // As tls.Server makes it. `onNewSession` listens to 'newSession' of that.
  tlsListener(stream, version, onNewSession) {
    const server = tls.createServer({ ...this.#credentials, minVersion: version, maxVersion: version });
    if (onNewSession)
      server.on('newSession', onNewSession);
    const accepted = once(server, 'secureConnection');
    server.emit('connection', stream);
    return accepted.then(({ 0: socket }) => socket);
  }

  // Its process is `peer.child`, the other side of it a net.Socket. Over the
  // FIFO it tells of each message of the handshake.
  async openssl() {
    const fifo = this.fifo();
    const messages = new net.Socket({ fd: fifo.reader, writable: false });
    const { 0: peer, 1: accepted } = await this.#accept('tcp', false, (address) => {
      const child = spawn('openssl', [
        's_client', '-connect', `127.0.0.1:${address.port}`, '-tls1_3', '-quiet', '-no_ign_eof',
        '-msg', '-msgfile', fifo.name,
      ], { stdio: ['pipe', 'pipe', 'ignore'] });
      const peer = overJS(child.stdout, child.stdin);
      child.stdin.on('error', () => {});
      peer.child = child;
      return peer;
    });
    // The process has it open.
    fs.closeSync(fifo.writer);
    return { peer, accepted, messages, fifo };
  }

  // Two descriptors of a FIFO that nobody else has; giveBack(path) when all of
  // them are closed.
  fifo() {
    if (this.#fifos.length === 0) {
      for (let i = 0; i < 32; i++)
        this.#fifos.push(path.join(this.#directory, `${process.pid} fifo ${this.#fifoCount++}`));
      const { status, stderr } = spawnSync('mkfifo', this.#fifos);
      if (status !== 0)
        throw new Error(`mkfifo: ${stderr}`);
    }
    const name = this.#fifos.pop();
    const { O_RDONLY, O_WRONLY, O_NONBLOCK } = fs.constants;
    return {
      name,
      reader: fs.openSync(name, O_RDONLY | O_NONBLOCK),
      writer: fs.openSync(name, O_WRONLY | O_NONBLOCK),
    };
  }

  giveBack(fifo) {
    this.#fifos.push(fifo.name);
  }
}

module.exports = { Sockets, overJS };
