'use strict';

// KeyUpdate of TLS 1.3, which the peer does, and asks for, in the middle of a
// transfer: no byte is lost, and what is sent next has new keys as well.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { spawn } = require('child_process');
const { once } = require('events');
const { opensslCli } = require('../common/crypto');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');
if (!opensslCli)
  common.skip('missing openssl cli');

const {
  cert, closing, fifo, key, payload, pipeSocket, receive, run, send, socketPair,
} = require('../common/tls-splice');

const kUpdates = 20;
const kBlock = 40000;

// `openssl s_client` as the peer. On its standard input a line with K or k does
// a KeyUpdate, with K asking for one of ours.
async function peer() {
  const listener = tls.createServer({
    key, cert, minVersion: 'TLSv1.3', allowHalfOpen: true,
  }).listen(0);
  const accepted = once(listener, 'secureConnection');
  await once(listener, 'listening');
  const { path, reader, writer } = fifo();
  const messages = pipeSocket(reader);
  const child = spawn(opensslCli, [
    's_client', '-connect', `127.0.0.1:${listener.address().port}`, '-tls1_3',
    '-quiet', '-no_ign_eof', '-msg', '-msgfile', path,
  ]);
  const { 0: server } = await accepted;
  listener.close();
  // It has the FIFO open.
  pipeSocket(writer, { readable: false }).destroy();

  let log = '';
  messages.setEncoding('utf8').on('data', (data) => log += data);
  const count = (what) => log.split(what).length - 1;
  const reached = async (what, number) => {
    while (count(what) < number)
      await once(messages, 'data');
  };
  return {
    child,
    server,
    // How many KeyUpdates the peer has sent and got.
    sent: (number) => reached(/>>> .*KeyUpdate/, number),
    got: (number) => reached(/<<< .*KeyUpdate/, number),
  };
}

// Of digits: wherever s_client starts to read, that is no command.
function block(seed) {
  const { value } = payload(kBlock / 2, seed).next();
  return Buffer.from(value.toString('hex'));
}

for (const direction of ['in', 'duplex']) {
  run(async () => {
    const { child, server, sent, got } = await peer();
    const { 0: endpoint, 1: other } = await socketPair();
    const splice = server.spliceTo({ stream: endpoint, direction }).start();
    const closed = closing(child);
    const chunks = [];
    const inward = receive(other);
    const outward = receive(child.stdout);
    other.on('data', (chunk) => chunks.push(chunk));
    for (let i = 1; i <= kUpdates; i++) {
      child.stdin.write(i % 2 ? 'K\n' : 'k\n');
      await sent(i);
      const text = block(i);
      child.stdin.write(text);
      await inward.receiver.reached(i * kBlock);
      assert.deepStrictEqual(Buffer.concat(chunks.splice(0)), text);
      // OpenSSL answers in front of what is sent next.
      (direction === 'in' ? server : other).write('.');
      await outward.receiver.reached(i);
      await got((i + 1) >> 1);
    }
    assert.strictEqual(splice.stats.bytesIn, kUpdates * kBlock);
    // An s_client that has got close_notify is done.
    (direction === 'in' ? server : other).end();
    assert.strictEqual((await outward).bytes, kUpdates);
    await closed;
    server.destroy();
  });
}

// While both directions are busy
run(async () => {
  const size = 20e6;
  const { child, server, sent, got } = await peer();
  const { 0: endpoint, 1: other } = await socketPair();
  const splice = server.spliceTo({ stream: endpoint }).start();
  const outward = receive(child.stdout);
  const inward = receive(other);
  const sending = send(other, size);
  for (let i = 1; i <= kUpdates; i++) {
    child.stdin.write(block(i));
    // s_client reads all of it before the next line.
    await inward.receiver.reached(i * kBlock);
    child.stdin.write('K\n');
    await sent(i);
  }
  await sending;
  (await outward).check(size);
  // Several may be answered at once.
  await got(1);
  assert.strictEqual(splice.stats.bytesIn, kUpdates * kBlock);
  assert.strictEqual(splice.stats.bytesOut, size);
  server.destroy();
});
