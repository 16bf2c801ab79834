'use strict';

// The tunnel of appium-ios-tuntap to an iOS device, by a splice in place of the package's OpenSSL and threads. Its
// functions and its class are those of the package. Where Node has no splices, and on Windows, they are the package's
// own.
//
//   const { connectToTunnelLockdown } = require('./appium-forwarder.js');
//   const tunnel = await connectToTunnelLockdown(socket, { cert, key }, { onDead });
//
// appium-preload.mjs puts them in the place of the package's for programs that are not to be changed, and README.md
// says what to change in the package.

const tls = require('node:tls');
const { spawn } = require('node:child_process');
const { once } = require('node:events');
const { Worker, parentPort, workerData } = require('node:worker_threads');
// @ts-ignore: Not every reader of these examples has it.
const tuntap = require('appium-ios-tuntap');

const kMagic = 'CDTunnel';
const kHeader = kMagic.length + 2;
const kHandshakeTimeout = 15_000;
const kLeastMtu = 1280;
const kMostMtu = 65_000;

class SplicedForwarder {
  #socket = null;
  #timeout = null;
  #mtu = 0;
  #stopping = new AbortController();

  connect(tcpSocket, { cert, key }) {
    return this.#connect(tcpSocket, { cert, key });
  }

  connectPsk(tcpSocket, { psk, identity = '' }) {
    return this.#connect(tcpSocket, { ciphers: 'PSK', pskCallback: () => ({ psk, identity }) });
  }

  async #connect(tcpSocket, credentials) {
    this.#timeout = AbortSignal.timeout(kHandshakeTimeout);
    this.#socket = tls.connect({
      socket: tcpSocket,
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.2',
      // The device has made its certificate itself.
      rejectUnauthorized: false,
      checkServerIdentity: () => undefined,
      ...credentials,
    });
    // The device may go away while the interface is being set up, and an 'error' that nobody listens to would end the
    // process. Then pipeToNative() reports it.
    this.#socket.on('error', () => {});
    await once(this.#socket, 'secureConnect', { signal: this.#timeout });
  }

  // "CDTunnel", the length of a message in JSON, and the message, both ways.
  async handshake(mtu) {
    const body = JSON.stringify({ type: 'clientHandshakeRequest', mtu });
    const header = Buffer.from(`${kMagic}\0\0`);
    header.writeUInt16BE(body.length, kMagic.length);
    this.#socket.write(`${header.toString('latin1')}${body}`, 'latin1');
    const answer = await this.#read(kHeader);
    if (answer.toString('latin1', 0, kMagic.length) !== kMagic)
      throw new Error('The device does not speak CDTunnel');
    const message = JSON.parse(`${await this.#read(answer.readUInt16BE(kMagic.length))}`);
    this.#mtu = message.clientParameters.mtu;
    return message;
  }

  // What follows it is packets, and stays where the splice finds it.
  async #read(size) {
    for (;;) {
      const bytes = this.#socket.read(size);
      if (bytes?.length === size)
        return bytes;
      if (bytes || this.#socket.readableEnded)
        throw new Error('The device has closed the connection');
      await Promise.race([
        once(this.#socket, 'readable', { signal: this.#timeout }),
        once(this.#socket, 'end', { signal: this.#timeout }),
      ]);
    }
  }

  // Whatever else the device sends is no packet, and ends the tunnel at once.
  startForwarding(tun, onError) {
    const { signal } = this.#stopping;
    this.#socket.pipeToNative(tun.fd, { framing: 'ipv6', maxPacketSize: this.#mtu, signal }).then(
      () => onError?.('The device has closed the connection'),
      (err) => !signal.aborted && onError?.(err.message));
  }

  // Waits for nobody, whatever the device is in the middle of.
  stop() {
    this.#stopping.abort();
    this.#socket?.destroy();
  }
}

// On Windows there is the class, but spliceTo() throws.
const isSpliced = tls.TLSSplice !== undefined && process.platform !== 'win32';
const TunnelForwarder = isSpliced ? SplicedForwarder : tuntap.TunnelForwarder;

// --- In a Worker, which does not wait for the event loop of the main thread -----------------------------------------

// What the environment asks for, within the limits of the package. Without a number it is the least.
function mtuToRequest() {
  const size = Number(process.env.APPIUM_TUNTAP_MTU_REQUEST_SIZE?.trim() || NaN);
  return Number.isInteger(size) ? Math.min(Math.max(size, kLeastMtu), kMostMtu) : kLeastMtu;
}

// Whoever has connected the socket is not told of its end: it has been handed over, and did not fail.
function discard(socket) {
  socket.pause();
  socket.removeAllListeners();
  socket.destroy();
}

async function connectInWorker(socket, method, credentials, options) {
  // Nobody has read what the device says: it speaks when it is spoken to.
  if (socket.readableLength > 0)
    throw new Error('The socket has been read');
  const appiumTunnel = { fd: socket._handle.fd, method, credentials };
  const worker = new Worker(__filename, { workerData: { appiumTunnel } });
  const exited = new Promise((resolve) => worker.once('exit', resolve));
  const closer = async () => {
    worker.postMessage('stop');
    await exited;
  };
  try {
    const { address, port } = await new Promise((resolve, reject) => {
      const handlers = {
        // The Worker has the socket: from now on nobody else may read from it.
        taken() {
          discard(socket);
          worker.postMessage('go');
        },
        up: resolve,
        failed: (message) => reject(new Error(message)),
        dead: (message) => options?.onDead?.(message),
      };
      worker.on('message', ({ event, value }) => handlers[event](value));
      worker.once('error', reject);
      exited.then(() => reject(new Error('The Worker has ended')));
    });
    return { Address: address, RsdPort: port, tunnelManager: { stop: closer }, closer };
  } catch (err) {
    discard(socket);
    await closer();
    throw err;
  }
}

// A socket of this thread for a descriptor of another thread's socket. A connected socket of any kind can be inherited
// by a process, and be sent by that process to the thread that has started it. It arrives as a descriptor of its own.
async function socketFrom(fd) {
  const script = 'process.send(0, new (require("net").Socket)({ fd: 4 }), () => process.disconnect())';
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'inherit', 'inherit', 'ipc', fd] });
  const ended = once(child, 'exit').then(() => [0, undefined]);
  const { 1: socket } = await Promise.race([once(child, 'message'), ended]);
  if (!socket)
    throw new Error('The socket cannot be handed over');
  return socket;
}

async function serve({ fd, method, credentials }) {
  const tell = (event, value) => parentPort.postMessage({ event, value });
  const forwarder = new TunnelForwarder();
  const manager = new tuntap.TunnelManager();
  const stop = async () => {
    forwarder.stop();
    await manager.stop();
    parentPort.close();
  };
  const go = new Promise((resolve) => {
    parentPort.on('message', (message) => (message === 'go' ? resolve() : stop()));
  });
  try {
    const socket = await socketFrom(fd);
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 1000);
    tell('taken');
    await go;
    await forwarder[method](socket, credentials);
    const info = await forwarder.handshake(mtuToRequest());
    await manager.setupInterface(info);
    manager.startForwarding(forwarder, (message) => {
      // As with the package, nothing of a tunnel is left that is dead, whether anybody calls its closer() or not.
      tell('dead', message);
      parentPort.close();
    });
    tell('up', { address: info.serverAddress, port: info.serverRSDPort });
  } catch (err) {
    tell('failed', err.message);
  }
}

// This file need not be the Worker's main module: a Worker loads first what its process was told to preload.
if (workerData?.appiumTunnel)
  serve(workerData.appiumTunnel);

module.exports = {
  TunnelForwarder,
  connectToTunnelLockdown: isSpliced ?
    (socket, credentials, options) => connectInWorker(socket, 'connect', credentials, options) :
    tuntap.connectToTunnelLockdown,
  connectToTunnelPsk: isSpliced ?
    (socket, credentials, options) => connectInWorker(socket, 'connectPsk', credentials, options) :
    tuntap.connectToTunnelPsk,
};
