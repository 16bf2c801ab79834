'use strict';

// A UDP endpoint whose packets are too large for a router on their way.
// usage: node udp.js echo ADDRESS
//        node udp.js splice ADDRESS PORT

const assert = require('assert');
const dgram = require('dgram');
const { once } = require('events');
const tls = require('tls');

const { 2: role, 3: address, 4: port } = process.argv;
const socket = dgram.createSocket('udp4');
// Packets that are sent at once, after the first.
const kMore = 10;

function echo() {
  socket.on('message', (message, { port, address }) => socket.send(message, port, address));
  socket.bind(0, address, () => console.log(`listening on ${socket.address().port}`));
}

// The two ends of a TLS connection.
async function connected() {
  const psk = Buffer.alloc(32, 1);
  const options = { ciphers: 'PSK', maxVersion: 'TLSv1.2' };
  const listener = tls.createServer({ ...options, pskCallback: () => psk }).listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const client = tls.connect({
    ...options,
    port: listener.address().port,
    checkServerIdentity() {},
    pskCallback: () => ({ psk, identity: 'x' }),
  });
  const { 0: server } = await once(listener, 'secureConnection');
  return { client, server };
}

async function splice() {
  socket.connect(Number(port), address);
  const { 0: { client, server } } = await Promise.all([connected(), once(socket, 'connect')]);
  const splice = server.spliceTo({ fd: socket._handle.fd }).start();
  // The splice has a descriptor of its own, and nobody else may read the answers and the errors.
  socket.close();
  splice.finished.catch((err) => {
    console.log(`failed ${err.code} ${err.syscall}`);
    process.exit(1);
  });

  const packet = Buffer.alloc(2 + 1280, 'x');
  packet.writeUInt16BE(1280);
  client.write(packet);
  while (splice.stats.dropsEMSGSIZE === 0)
    await new Promise(setImmediate);
  // Linux sends the next ones in fragments, for which they must not be segments of one message.
  const packets = Buffer.concat(Array(kMore).fill(packet));
  client.write(packets);
  const chunks = [];
  for (let length = 0; length < packets.length;) {
    const { 0: chunk } = await once(client, 'data');
    length += chunk.length;
    chunks.push(chunk);
  }
  assert.deepStrictEqual(Buffer.concat(chunks), packets);
  console.log(JSON.stringify(await splice.stop()));
  process.exit();
}

if (role === 'echo')
  echo();
else
  splice();
