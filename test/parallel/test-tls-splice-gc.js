// Flags: --expose-gc
'use strict';

// Handles that nobody starts or keeps are collected, with their file
// descriptors; and so are those that have ended.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.isLinux)
  common.skip('looks at /proc');

const assert = require('assert');
const fs = require('fs');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { gcUntil } = require('../common/gc');
const { fifo, isOpen, run, socketPair, tlsPair, turns } = require('../common/tls-splice');

const openFiles = () => fs.readdirSync('/proc/self/fd').length;

run(async () => {
  const { server } = await tlsPair();
  const { 0: endpoint } = await socketPair();
  const { reader, writer } = fifo();
  const targets = [
    { stream: endpoint }, { fd: writer, direction: 'in' }, { fd: reader, direction: 'out' },
  ];
  const before = openFiles();

  for (let round = 0; round < 10; round++) {
    for (let i = 0; i < 300; i++)
      server.spliceTo(targets[i % targets.length]);
    await gcUntil('idle handles', () => openFiles() <= before);
  }

  // Nothing is listed that has no object any more.
  for (const target of targets) {
    server.spliceTo(target);
    await new Promise(setImmediate);
    globalThis.gc();
    process._getActiveHandles();
  }

  // Refused and failed ones
  for (let i = 0; i < 1000; i++) {
    assert.throws(() => server.spliceTo({ fd: reader, direction: 'in' }),
                  { code: 'ERR_INVALID_ARG_VALUE' });
  }
  assert(openFiles() <= before);

  // Those that have ended need no garbage collection.
  for (let i = 0; i < 500; i++)
    await server.spliceTo(targets[i % targets.length]).start().stop();
  await turns();
  assert.strictEqual(openFiles(), before);

  assert.strictEqual(endpoint.destroyed, false);
  assert.strictEqual(server.destroyed, false);
  assert(isOpen(reader));
  assert(isOpen(writer));
});

// A handle that runs is not collected, though nobody keeps it.
run(async () => {
  const { client, server } = await tlsPair({ allowHalfOpen: true });
  const { 0: endpoint, 1: other } = await socketPair();
  server.spliceTo({ stream: endpoint }).start();
  for (let i = 0; i < 5; i++) {
    globalThis.gc();
    await turns();
  }
  client.end('still there');
  assert.strictEqual((await other.setEncoding('utf8').toArray()).join(''), 'still there');
});
