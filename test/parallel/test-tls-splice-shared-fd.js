'use strict';

// File descriptors that others hold too: their O_NONBLOCK does not change under
// them, and so a splice can be a part of a shell's pipeline.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.isLinux)
  common.skip('looks at /proc');

const assert = require('assert');
const { spawn } = require('child_process');
const { createHash } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const tmpdir = require('../common/tmpdir');
const {
  MiB, digestOf, fifo, payload, receive, run, send, tlsPair,
} = require('../common/tls-splice');

const kSize = 8 * MiB + 5;
const flagsOf = (fd) => /flags:\s+(\d+)/.exec(fs.readFileSync(`/proc/self/fdinfo/${fd}`))[1];

const roles = {
  // Looks at the flags of its file descriptor 3 all the time.
  async watch() {
    const seen = {};
    let stop = false;
    process.on('message', () => { stop = true; });
    (function look() {
      for (let i = 0; i < 50; i++) {
        const flags = flagsOf(3);
        if (seen[flags] === undefined)
          process.send({ flags });
        seen[flags] = (seen[flags] ?? 0) + 1;
      }
      if (stop)
        process.send(seen, () => process.disconnect());
      else
        setImmediate(look);
    })();
  },

  // Its file descriptor 3 is a blocking socket, and the other end echoes.
  async socket() {
    await echo([{ fd: 3 }], [3]);
    // The shutdown of the last one is the end of it.
    fs.closeSync(3);
  },

  async stdio() {
    const { client, server } = await tlsPair({ allowHalfOpen: true });
    await Promise.all([
      client.pipeToNative(0, { direction: 'out' }),
      server.pipeToNative(Number(process.argv[3]), { direction: 'in' }),
    ]);
    client.destroy();
    server.destroy();
  },
};

function start(role, ...stdio) {
  return spawn(process.execPath, [__filename, role], {
    stdio: ['ignore', 'inherit', 'inherit', ...stdio],
  });
}

async function watch(fd) {
  const before = flagsOf(fd);
  assert.strictEqual(Number.parseInt(before, 8) & fs.constants.O_NONBLOCK, 0);
  const child = start('watch', fd, 'ipc');
  const { 0: { flags } } = await once(child, 'message');
  assert.strictEqual(flags, before);
  return async () => {
    const exited = once(child, 'exit');
    child.send('stop');
    const { 0: seen } = await once(child, 'message');
    assert.deepStrictEqual(Object.keys(seen), [flags]);
    assert.deepStrictEqual(await exited, [0, null]);
    assert.strictEqual(flagsOf(fd), flags);
  };
}

// What the client sends comes back by way of the splices, while others watch.
async function echo(splices, fds) {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const watchers = await Promise.all(fds.map(watch));
  const received = receive(client);
  const running = splices.map((options) => server.spliceTo(options).start());
  await send(client, kSize);
  (await received).check(kSize);
  for (const splice of running)
    assert.strictEqual((await splice.finished).reason, 'end');
  for (const done of watchers)
    await done();
}

if (process.argv[2] !== undefined) {
  roles[process.argv[2]]().then(common.mustCall());
  return;
}

// A FIFO, of which a process has both ends open as blocking
run(async () => {
  const { path, reader: first, writer: second } = fifo();
  const reader = fs.openSync(path, 'r');
  const writer = fs.openSync(path, 'w');
  fs.closeSync(first);
  fs.closeSync(second);
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const watchers = await Promise.all([reader, writer].map(watch));
  const received = receive(client);
  const out = server.spliceTo({ fd: reader, direction: 'out' }).start();
  const inward = server.spliceTo({ fd: writer, direction: 'in' }).start();
  await send(client, kSize, { end: false });
  await received.receiver.reached(kSize);
  received.receiver.check(kSize);
  await Promise.all([out.stop(), inward.stop()]);
  for (const done of watchers)
    await done();
  fs.closeSync(reader);
  fs.closeSync(writer);
});

// A blocking socket: what spawn() gives to a child
run(async () => {
  const child = start('socket', 'pipe');
  const socket = child.stdio[3];
  socket.pipe(socket);
  assert.deepStrictEqual(await once(child, 'exit'), [0, null]);
});

// In a shell. What runs after it has the same standard input and output, and
// would fail if they did not block any more.
run(async () => {
  tmpdir.refresh();
  const path = tmpdir.resolve('payload');
  fs.writeFileSync(path, '');
  for (const chunk of payload(kSize))
    fs.appendFileSync(path, chunk);
  const twice = createHash('sha256');
  for (const chunk of [...payload(kSize), ...payload(kSize)])
    twice.update(chunk);
  const single = digestOf(kSize);
  const double = twice.digest('hex');

  const scripts = {
    'cat "$1" | "$node" "$test" stdio 1 | sha256sum': single,
    '"$node" "$test" stdio 1 <"$1" | sha256sum': single,
    'cat "$1" | "$node" "$test" stdio 1 >"$1.out"; sha256sum <"$1.out"': single,
    'cat "$1" | NODE_NO_WARNINGS=1 "$node" "$test" stdio 2 2>&1 >&- | sha256sum': single,
    '{ "$node" "$test" stdio 1; cat "$1"; } <"$1" | sha256sum': double,
    '{ cat "$1"; "$node" "$test" stdio 1 <"$1"; cat </dev/null; } >>"$1.more"; sha256sum <"$1.more"': double,
    'cat "$1" "$1" | { head -c "$size"; "$node" "$test" stdio 1; } | sha256sum': double,
    'mkfifo "$1.fifo"; cat "$1" >"$1.fifo" & "$node" "$test" stdio 1 <"$1.fifo" | sha256sum': single,
  };
  for (const { 0: script, 1: digest } of Object.entries(scripts)) {
    const child = spawn('sh', ['-c', script, 'sh', path], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: {
        ...process.env,
        node: process.execPath,
        size: kSize,
        test: __filename,
        TEST_THREAD_ID: `${process.env.TEST_THREAD_ID}-child`,
      },
    });
    const output = child.stdout.setEncoding('latin1').toArray();
    assert.deepStrictEqual(await once(child, 'exit'), [0, null]);
    assert.strictEqual((await output).join(''), `${digest}  -\n`, script);
  }
});
