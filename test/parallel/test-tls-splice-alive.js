'use strict';

// A splice that runs keeps the process alive, one that was unref()ed does not,
// and neither does one that is over. An exit in the middle is an exit.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { spawn } = require('child_process');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  fifo, run, socketPair, tlsPair,
} = require('../common/tls-splice');

const scenarios = {
  // Nothing but the splice holds this one: the child's mother ends it.
  async running() {
    const { client, server } = await tlsPair();
    const { reader } = fifo();
    const splice = server.spliceTo({ fd: reader, direction: 'out' }).start();
    splice.on('close', () => { throw new Error('not yet'); });
    client.unref();
    server.unref();
    setImmediate(() => process.send('running'));
    process.channel.unref();
  },

  async unref() {
    const { client, server } = await tlsPair();
    const { reader } = fifo();
    server.spliceTo({ fd: reader, direction: 'out' }).start().unref();
    client.unref();
    server.unref();
  },

  // A stream holds the process itself, and so does another TLSSocket.
  async unrefStream() {
    const { client, server } = await tlsPair();
    const { 0: endpoint, 1: other } = await socketPair();
    server.spliceTo({ stream: endpoint }).start().unref();
    for (const socket of [client, server, other])
      socket.unref();
  },

  async unrefTLS() {
    const { client, server } = await tlsPair();
    const { client: far, server: endpoint } = await tlsPair();
    server.spliceTo({ stream: endpoint }).start().unref();
    for (const socket of [client, server, far])
      socket.unref();
  },

  // unref() before start(), and ref() undone
  async unrefFirst() {
    const { client, server } = await tlsPair();
    const { reader } = fifo();
    server.spliceTo({ fd: reader, direction: 'out' }).unref().ref().unref().start();
    client.unref();
    server.unref();
  },

  async idle() {
    const { client, server } = await tlsPair();
    const { reader } = fifo();
    const splice = server.spliceTo({ fd: reader, direction: 'out' });
    process.on('exit', () => assert.strictEqual(splice.state, 'idle'));
    client.unref();
    server.unref();
  },

  async stopped() {
    const { client, server } = await tlsPair();
    const { reader } = fifo();
    await server.spliceTo({ fd: reader, direction: 'out' }).start().stop();
    client.unref();
    server.unref();
  },

  // At the end everything is closed by itself.
  async ended() {
    const { client, server } = await tlsPair();
    const { 0: endpoint, 1: other } = await socketPair();
    const done = server.pipeToNative(endpoint);
    client.end('x');
    client.resume();
    other.resume().on('end', () => other.end());
    await done;
  },

  // Then there is one more turn, in which the next can start.
  async beforeExit() {
    let rounds = 0;
    process.on('beforeExit', () => {
      if (++rounds < 3)
        scenarios.ended();
    });
    process.on('exit', () => assert.strictEqual(rounds, 3));
    await scenarios.ended();
  },

  async exit() {
    const { client, server } = await tlsPair();
    const { 0: endpoint, 1: other } = await socketPair();
    const splice = server.spliceTo({ stream: endpoint }).start();
    splice.on('close', () => { throw new Error('not on exit'); });
    const chunk = Buffer.alloc(1e6);
    client.write(chunk);
    other.on('data', () => process.exit(0));
  },

  async exitListener() {
    const { client, server } = await tlsPair();
    const { 0: endpoint, 1: other } = await socketPair();
    const splice = server.spliceTo({ stream: endpoint }).start();
    process.on('exit', () => splice.stop());
    client.write('x');
    other.on('data', () => process.exit(0));
  },
};

if (process.argv[2] !== undefined) {
  scenarios[process.argv[2]]();
  return;
}

run(async () => {
  for (const name of Object.keys(scenarios)) {
    const child = spawn(process.execPath, [__filename, name], {
      stdio: ['ignore', 'inherit', 'pipe', 'ipc'],
      env: { ...process.env, TEST_THREAD_ID: `${process.env.TEST_THREAD_ID}-${name}` },
    });
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (data) => stderr += data);
    child.on('message', common.mustCallAtLeast(() => child.kill(), 0));
    const { 0: code, 1: signal } = await once(child, 'close');
    assert.deepStrictEqual(
      [name, code, signal],
      name === 'running' ? [name, null, 'SIGTERM'] : [name, 0, null], stderr);
  }
});
