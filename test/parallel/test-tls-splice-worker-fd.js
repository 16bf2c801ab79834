'use strict';

// A file descriptor that a Worker splices is closed as often as it has to be: by
// a splice with autoClose once, whether the splice ends or the Worker does, and
// else by its owner. Meanwhile the number may be that of another file.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const tls = require('tls');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { fifo, isOpen, run, tlsPair } = require('../common/tls-splice');

// Tells the main thread the number when the splice is running or, with `ends`,
// over. It ends when the main thread says so.
async function work({ path, fd = fs.openSync(path, fs.constants.O_WRONLY), autoClose, ends }) {
  const { client, server } = await tlsPair();
  const splice = server.spliceTo({ fd, direction: 'in', autoClose }).start();
  client.write('x');
  while (splice.stats.bytesIn < 1)
    await new Promise(setImmediate);
  if (ends)
    await splice.stop();
  parentPort.postMessage(fd);
}

if (!isMainThread) {
  // It keeps the Worker alive.
  parentPort.on('message', () => process.exit());
  work(workerData).then(common.mustCall());
  return;
}

async function start(workerData) {
  const worker = new Worker(__filename, { workerData });
  const { 0: fd } = await once(worker, 'message');
  return { worker, fd };
}

const kEnds = {
  'terminate()': (worker) => worker.terminate(),
  'process.exit()': async (worker) => {
    worker.postMessage('exit');
    await once(worker, 'exit');
  },
};

// Another file gets the number, if it is free.
function take(number) {
  assert(!isOpen(number));
  const others = [];
  for (;;) {
    const fd = fs.openSync(__filename, 'r');
    if (fd === number)
      break;
    others.push(fd);
  }
  for (const fd of others)
    fs.closeSync(fd);
}

function assertIsThisFile(fd) {
  assert.strictEqual(fs.fstatSync(fd).ino, fs.statSync(__filename).ino);
}

for (const endWorker of Object.values(kEnds)) {
  for (const kind of ['fifo', 'file']) {
    run(async () => {
      const made = fifo();
      const path = kind === 'fifo' ? made.path : '/dev/null';

      // The splice has closed it: the Worker must not do so again.
      const first = await start({ path, autoClose: true, ends: true });
      take(first.fd);
      await endWorker(first.worker);
      assertIsThisFile(first.fd);
      fs.closeSync(first.fd);

      // The splice ends with the Worker.
      const second = await start({ path, autoClose: true, ends: false });
      assert(isOpen(second.fd));
      await endWorker(second.worker);
      assert(!isOpen(second.fd));

      // It is the Worker's own.
      const third = await start({ path, autoClose: false, ends: false });
      await endWorker(third.worker);
      assert(!isOpen(third.fd));

      // It is the main thread's.
      const fd = fs.openSync(path, fs.constants.O_WRONLY);
      const fourth = await start({ fd, autoClose: false, ends: false });
      assert.strictEqual(fourth.fd, fd);
      await endWorker(fourth.worker);
      assert(isOpen(fd));

      // The main thread has handed it over.
      const fifth = await start({ fd, autoClose: true, ends: false });
      await endWorker(fifth.worker);
      assert(!isOpen(fd));

      fs.closeSync(made.reader);
      fs.closeSync(made.writer);
    });
  }
}
