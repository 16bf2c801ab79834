'use strict';

// The tunnel of appium-ios-tuntap to an iOS device, by a splice in place of the package's OpenSSL and threads. Its
// functions and its class are those of the package, and where Node has no splices they are the package's own.
//
//   const { connectToTunnelLockdown } = require('./appium-forwarder.js');
//   const tunnel = await connectToTunnelLockdown(socket, { cert, key }, { onDead });
//
// README.md in this folder says what to change in the package.

const net = require('node:net');
const tls = require('node:tls');
const { fork } = require('node:child_process');
const { once } = require('node:events');
// @ts-ignore: Not every reader of these examples has it.
const tuntap = require('appium-ios-tuntap');

const kMagic = 'CDTunnel';
const kHeader = kMagic.length + 2;
const kHandshakeTimeout = 15_000;

class SplicedForwarder {
  #socket = null;
  #splice = null;
  #signal = null;

  connect(tcpSocket, { cert, key }) {
    return this.#connect(tcpSocket, { cert, key });
  }

  connectPsk(tcpSocket, { psk, identity = '' }) {
    return this.#connect(tcpSocket, { ciphers: 'PSK', pskCallback: () => ({ psk, identity }) });
  }

  async #connect(tcpSocket, credentials) {
    this.#signal = AbortSignal.timeout(kHandshakeTimeout);
    this.#socket = tls.connect({
      socket: tcpSocket,
      minVersion: 'TLSv1.2',
      maxVersion: 'TLSv1.2',
      // The device has made its certificate itself.
      rejectUnauthorized: false,
      checkServerIdentity: () => undefined,
      ...credentials,
    });
    this.#socket.on('error', () => {});  // What waits for the socket fails, too.
    await once(this.#socket, 'secureConnect', { signal: this.#signal });
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
    return JSON.parse(`${await this.#read(answer.readUInt16BE(kMagic.length))}`);
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
        once(this.#socket, 'readable', { signal: this.#signal }),
        once(this.#socket, 'end', { signal: this.#signal }),
      ]);
    }
  }

  startForwarding(tun, onError) {
    this.#splice = this.#socket.spliceTo({ fd: tun.fd });
    this.#splice.finished.then(
      () => !this.#socket.destroyed && onError?.('The device has closed the connection'),
      (err) => onError?.(err.message));
    this.#splice.start();
  }

  stop() {
    this.#socket?.destroy();
  }
}

const isSpliced = tls.TLSSplice !== undefined;
const TunnelForwarder = isSpliced ? SplicedForwarder : tuntap.TunnelForwarder;

// --- In a process of its own, which does not wait for the event loop of this one ------------------------------------

const kSocketFd = 4;

async function connectInChild(socket, method, credentials, { onDead } = {}) {
  // Nobody has read what the device says: it speaks when it is spoken to.
  if (socket.readableLength > 0)
    throw new Error('The socket has been read');
  // A process inherits a connected socket, of whatever kind. Workers cannot be given one.
  const child = fork(__filename, { serialization: 'advanced', stdio: ['ignore', 'inherit', 'inherit', 'ipc', socket] });
  socket.destroy();
  const exited = new Promise((resolve) => child.once('exit', resolve));
  const closer = async () => {
    if (child.connected)
      child.disconnect();
    await exited;
  };
  child.send({ method, credentials });
  const { 0: message } = await Promise.race([once(child, 'message'), exited.then(() => [{ error: 'It has ended' }])]);
  if (message.error) {
    await closer();
    throw new Error(message.error);
  }
  child.on('message', ({ dead }) => onDead?.(dead));
  return { Address: message.address, RsdPort: message.port, tunnelManager: { stop: closer }, closer };
}

async function serve({ method, credentials }) {
  const socket = new net.Socket({ fd: kSocketFd });
  const forwarder = new TunnelForwarder();
  const manager = new tuntap.TunnelManager();
  process.once('disconnect', async () => {
    forwarder.stop();
    await manager.stop();
    process.exit();
  });
  try {
    await forwarder[method](socket, credentials);
    const info = await forwarder.handshake(Number(process.env.APPIUM_TUNTAP_MTU_REQUEST_SIZE ?? 1280));
    await manager.setupInterface(info);
    manager.startForwarding(forwarder, (dead) => process.send({ dead }));
    process.send({ address: info.serverAddress, port: info.serverRSDPort });
  } catch (err) {
    process.send({ error: err.message });
  }
}

if (require.main === module)
  process.once('message', serve);

module.exports = {
  TunnelForwarder,
  connectToTunnelLockdown: isSpliced ?
    (socket, credentials, options) => connectInChild(socket, 'connect', credentials, options) :
    tuntap.connectToTunnelLockdown,
  connectToTunnelPsk: isSpliced ?
    (socket, credentials, options) => connectInChild(socket, 'connectPsk', credentials, options) :
    tuntap.connectToTunnelPsk,
};
