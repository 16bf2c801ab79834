'use strict';

// Streams of which there is but one half: process.stdin, process.stdout and
// process.stderr, and others that only read or only write. What they cannot do is
// refused as for a descriptor, and what they can do works to the end.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const assert = require('assert');
const { spawn, spawnSync } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const tmpdir = require('../common/tmpdir');
const {
  Receiver, fifo, pipeSocket, receive, run, send, socketPair, tlsPair, turns,
} = require('../common/tls-splice');

const kSize = 1024 * 1024 + 7;
const refused = { code: 'ERR_INVALID_ARG_VALUE' };

// --- In the child ----------------------------------------------------------------

async function assertRefused(server, stream, options, message = /is not open for direction/) {
  const thrown = { ...refused, message };
  assert.throws(() => server.spliceTo({ stream, ...options }), thrown);
  await assert.rejects(server.pipeToNative(stream, options), thrown);
  assert.strictEqual(server.destroyed, false);
  assert.strictEqual(stream.destroyed, false);
}

const scenarios = {
  async refusesOut({ server }, name) {
    for (const end of [true, false]) {
      for (const direction of ['out', 'duplex', undefined])
        await assertRefused(server, process[name], { direction, end });
    }
  },

  async refusesIn({ server }) {
    for (const direction of ['in', 'duplex', undefined])
      await assertRefused(server, process.stdin, { direction });
  },

  async refusesFile({ server }, name) {
    for (const direction of ['in', 'out', 'duplex'])
      await assertRefused(server, process[name], { direction }, /use pipe\(\)/);
  },

  // Everything that the peer sends, and its end
  async in({ client, server }, name, autoClose) {
    const done = server.pipeToNative(process[name], {
      direction: 'in', autoClose: autoClose === 'autoClose',
    });
    await send(client, kSize);
    const { reason, bytesIn } = await done;
    assert.strictEqual(reason, 'end');
    assert.strictEqual(bytesIn, kSize);
    assert.strictEqual(server.destroyed, false);
    server.end('still there');
    assert.strictEqual((await client.setEncoding('utf8').toArray()).join(''), 'still there');
  },

  // After that it is JS's again.
  async inAndOn({ client, server }, name) {
    const done = server.pipeToNative(process[name], { direction: 'in', end: false });
    await send(client, kSize - 1);
    assert.strictEqual((await done).reason, 'end');
    assert.strictEqual(server.destroyed, false);
    process[name].write(Buffer.alloc(1));
  },

  async stopped({ client, server }, name) {
    const splice = server.spliceTo({ stream: process[name], direction: 'in', autoClose: true }).start();
    client.write('x');
    while (splice.stats.bytesIn === 0)
      await turns(1);
    assert.strictEqual((await splice.stop()).reason, 'stopped');
    assert.strictEqual(server.destroyed, false);
    // It cannot be closed.
    process[name].write(Buffer.alloc(1));
  },

  async out({ client, server }) {
    const received = receive(client);
    const { reason, bytesOut } = await server.pipeToNative(process.stdin, { direction: 'out' });
    assert.strictEqual(reason, 'end');
    assert.strictEqual(bytesOut, kSize);
    (await received).check(kSize);
    assert.strictEqual(server.destroyed, false);
  },
};

async function child([scenario, ...args]) {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  await scenarios[scenario]({ client, server }, ...args);
  process.send('done');
  // Whatever has ended by now has done so before the process does.
  await once(process, 'message');
  process.disconnect();
  client.destroy();
  server.destroy();
}

if (process.argv[2] === 'child') {
  child(process.argv.slice(3)).catch((err) => {
    process.send(require('util').inspect(err));
    process.disconnect();
    process.exitCode = 1;
  });
  return;
}

// --- In the parent ---------------------------------------------------------------

function start(args, stdio) {
  return spawn(process.execPath, [__filename, 'child', ...args], {
    stdio: [...stdio, 'ipc'],
    env: { ...process.env, NODE_NO_WARNINGS: '1' },
  });
}

async function finish(child, whileRunning) {
  const exited = once(child, 'exit');
  const { 0: message } = await once(child, 'message');
  assert.strictEqual(message, 'done');
  await whileRunning?.();
  child.send('exit');
  assert.deepStrictEqual(await exited, [0, null]);
}

// What was sent, and then zeros from JS
function checkAll(receiver, scenario) {
  if (scenario === 'in')
    receiver.check(kSize);
  else
    assert.strictEqual(receiver.bytes, scenario === 'stopped' ? 2 : kSize);
}

for (const name of ['stdout', 'stderr']) {
  const stdio = (it) => (name === 'stdout' ? ['ignore', it, 'inherit'] : ['ignore', 'ignore', it]);

  for (const args of [
    ['refusesOut', name], ['in', name], ['in', name, 'autoClose'], ['inAndOn', name], ['stopped', name],
  ]) {
    const { 0: scenario } = args;
    // A socket pair: what Node makes of 'pipe'.
    run(async () => {
      const child = start(args, stdio('pipe'));
      const received = receive(child[name]);
      await finish(child, async () => {
        // The end comes when the peer has ended, not when the process has.
        if (scenario === 'in')
          await received;
      });
      const receiver = await received;
      if (scenario === 'refusesOut')
        receiver.check(0);
      else
        checkAll(receiver, scenario);
    });

    // A pipe as a shell makes it
    run(async () => {
      const { reader, writer } = fifo();
      const child = start(args, stdio(writer));
      fs.closeSync(writer);
      const received = receive(pipeSocket(reader));
      await finish(child);
      const receiver = await received;
      if (scenario === 'refusesOut')
        receiver.check(0);
      else
        checkAll(receiver, scenario);
    });
  }

  run(async () => {
    tmpdir.refresh();
    const fd = fs.openSync(tmpdir.resolve('file'), 'w');
    await finish(start(['refusesFile', name], stdio(fd)));
    fs.closeSync(fd);
    assert.strictEqual(fs.statSync(tmpdir.resolve('file')).size, 0);
  });
}

for (const scenario of ['refusesIn', 'out']) {
  run(async () => {
    const child = start([scenario], ['pipe', 'inherit', 'inherit']);
    child.stdin.on('error', () => {});
    if (scenario === 'out')
      await send(child.stdin, kSize);
    await finish(child);
  });

  run(async () => {
    const { reader, writer } = fifo();
    const child = start([scenario], [reader, 'inherit', 'inherit']);
    fs.closeSync(reader);
    const source = pipeSocket(writer, { readable: false });
    source.on('error', () => {});
    if (scenario === 'out')
      await send(source, kSize);
    await finish(child);
    source.destroy();
  });
}

run(async () => {
  await finish(start(['refusesFile', 'stdin'], [fs.openSync(__filename), 'inherit', 'inherit']));
});

// A terminal reads and writes. Python makes one.
if (spawnSync('python3', ['-c', 'import pty, tty']).status === 0) {
  const terminal = `
import os, pty, sys, tty
pid, fd = pty.fork()
if pid == 0:
    tty.setraw(1)
    os.execv(sys.argv[1], sys.argv[1:])
os.close(3)
while True:
    try:
        data = os.read(fd, 65536)
    except OSError:
        break
    if not data:
        break
    while data:
        data = data[os.write(1, data):]
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
`;
  for (const scenario of ['in', 'inAndOn', 'stopped']) {
    run(async () => {
      const child = spawn('python3', [
        '-c', terminal, process.execPath, __filename, 'child', scenario, 'stdout',
      ], {
        stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
        env: { ...process.env, NODE_NO_WARNINGS: '1' },
      });
      const received = receive(child.stdout);
      await finish(child);
      checkAll(await received, scenario);
    });
  }
}

// --- Other streams ------------------------------------------------------------------

// Halves that a stream was made without. One that could and has ended is another
// matter.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: a, 1: b } = await socketPair('unix', { pauseOnConnect: true });
  for (const [options, able] of [
    [{ readable: false }, 'in'], [{ writable: false, manualStart: true }, 'out'],
  ]) {
    const stream = new net.Socket({ handle: a._handle, allowHalfOpen: true, ...options });
    for (const direction of ['in', 'out', 'duplex']) {
      if (direction === able)
        await server.spliceTo({ stream, direction }).stop();
      else
        await assertRefused(server, stream, { direction });
    }
  }
  a.destroy();
  b.destroy();

  const { 0: ended, 1: other } = await socketPair();
  ended.end();
  await once(other.resume(), 'end');
  assert.throws(() => server.spliceTo({ stream: ended, direction: 'in' }).start(),
                { code: 'ERR_INVALID_STATE' });
  const splice = server.spliceTo({ stream: ended, direction: 'out' }).start();
  other.write('x');
  assert.strictEqual(`${await once(client, 'data')}`, 'x');
  await splice.stop();
});

// The ends of a pipe, of which the stream does not know. Those that it was told of
// as well.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { reader, writer } = fifo();
  const source = new net.Socket({ fd: reader });
  const sink = new net.Socket({ fd: writer, manualStart: true });
  for (const direction of ['in', 'duplex'])
    await assertRefused(server, source, { direction });
  for (const direction of ['out', 'duplex'])
    await assertRefused(server, sink, { direction });

  const splices = [
    server.spliceTo({ stream: source, direction: 'out' }).start(),
  ];
  sink.write('out');
  assert.strictEqual(`${await once(client, 'data')}`, 'out');
  await splices[0].stop();
  const receiver = new Receiver();
  source.on('data', (chunk) => receiver.update(chunk));
  const splice = server.spliceTo({ stream: sink, direction: 'in', autoClose: true }).start();
  await send(client, 100_000);
  await splice.finished;
  await receiver.reached(100_000);
  receiver.check(100_000);
  source.destroy();
});
