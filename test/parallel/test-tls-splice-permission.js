'use strict';

// With the permission model a splice works on what is open already, as node:fs
// does, and needs no permission for that.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no splices on Windows');

const assert = require('assert');
const { spawn } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const path = require('path');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  fifo, pipeSocket, receive, run, send, tlsPair,
} = require('../common/tls-splice');

const kSize = 100_003;
// File descriptors of the child process
const kFile = 3;
const kSink = 4;
const kSource = 5;

function parent() {
  const fixtures = require('../common/fixtures');
  run(async () => {
    // Pipes, since a splice opens those anew.
    const sink = fifo();
    const source = fifo();
    const file = path.join(path.dirname(sink.path), 'file');
    const fd = fs.openSync(file, 'w');
    const child = spawn(process.execPath, [
      '--permission',
      `--allow-fs-read=${path.dirname(require.resolve('../common'))}`,
      `--allow-fs-read=${fixtures.path('keys')}`,
      __filename, 'child', file, sink.path, source.path,
    ], { stdio: ['ignore', 'inherit', 'inherit', fd, sink.writer, source.reader] });
    for (const given of [fd, sink.writer, source.reader])
      fs.closeSync(given);
    const exited = once(child, 'close');
    const { 0: received } = await Promise.all([
      receive(pipeSocket(sink.reader)),
      send(pipeSocket(source.writer, { readable: false }), kSize, { seed: 3 }),
    ]);
    assert.deepStrictEqual(await exited, [0, null]);
    received.check(kSize, 2);
    (await receive(fs.createReadStream(file))).check(kSize, 1);
  });
}

function child(file, sink, source) {
  const refused = (path, flags, permission) => {
    assert.throws(() => fs.openSync(path, flags),
                  { code: 'ERR_ACCESS_DENIED', permission });
  };

  run(async () => {
    for (const { fd, path, seed } of [
      { fd: kFile, path: file, seed: 1 },
      { fd: kSink, path: sink, seed: 2 },
    ]) {
      refused(path, 'w', 'FileSystemWrite');
      refused(`/proc/self/fd/${fd}`, 'w', 'FileSystemWrite');
      const { client, server } = await tlsPair();
      client.resume();
      const done = server.pipeToNative(fd, { direction: 'in', autoClose: true });
      await send(client, kSize, { seed });
      assert.strictEqual((await done).bytesIn, kSize);
    }

    refused(source, 'r', 'FileSystemRead');
    refused(`/proc/self/fd/${kSource}`, 'r', 'FileSystemRead');
    const { client, server } = await tlsPair();
    const receiving = receive(client);
    await server.pipeToNative(kSource, { direction: 'out' });
    (await receiving).check(kSize, 3);
  });
}

if (process.argv[2] === 'child')
  child(...process.argv.slice(3));
else
  parent();
