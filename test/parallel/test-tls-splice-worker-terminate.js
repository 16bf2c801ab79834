'use strict';

// terminate() of Workers that splice, at any moment: from before the handshake
// to the middle of transfers, with endpoints of all kinds. The process lives on,
// and has no more file descriptors than before.
//
// TEST_TLS_SPLICE_WORKERS says how many Workers, for a longer run.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (!common.isLinux)
  common.skip('looks at /proc');

const assert = require('assert');
const { once } = require('events');
const fs = require('fs');
const { duplexPair } = require('stream');
const tls = require('tls');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { run, settled, socketPair, tlsOver, turns } = require('../common/tls-splice');

const kWorkers = Number(process.env.TEST_TLS_SPLICE_WORKERS ?? 80);
const kAtOnce = 4;
const kMoments = 20;

// Writes for ever.
function flood(stream, chunk) {
  stream.on('error', () => {});
  stream.on('drain', write);
  function write() {
    while (stream.write(chunk));
  }
  write();
}

async function work({ endpoint, fifo, moment, stop }) {
  const chunk = Buffer.alloc(100000, 'x');
  const { O_NONBLOCK, O_RDONLY, O_WRONLY } = fs.constants;
  const open = {
    // A sink that nobody reads
    fifo: () => {
      fs.openSync(fifo, O_RDONLY | O_NONBLOCK);
      return { fd: fs.openSync(fifo, O_WRONLY | O_NONBLOCK), direction: 'in' };
    },
    source: () => ({ fd: fs.openSync('/dev/zero', 'r'), direction: 'out' }),
    file: () => ({ fd: fs.openSync('/dev/null', 'r+'), direction: 'in' }),
    stream: async () => {
      const { 0: stream, 1: other } = await socketPair();
      flood(other, chunk);
      other.resume();
      return { stream, autoClose: true };
    },
  };
  const { 0: a, 1: b } = await socketPair();
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  const splice = server.spliceTo(await open[endpoint]());
  splice.on('close', () => {
    if (splice.stats.reason !== 'stopped')
      throw new Error(`${endpoint} has ended`);
  });
  server.on('error', () => {});
  splice.start();
  flood(client, chunk);
  client.resume();
  if (stop)
    client.on('secureConnect', () => turns(moment).then(() => splice.stop()));
  await turns(moment);
  parentPort.postMessage('now');
}

// A splice was stopped beside an empty write that the stream below never completes.
async function leaveEmptyWrite() {
  const { 0: a, 1: b } = duplexPair();
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true });
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  const { 0: stream } = await socketPair();
  const splice = server.spliceTo({ stream, direction: 'in' }).start();
  const written = new Promise((resolve) => b._write = resolve);
  server.write('');
  await written;
  await splice.stop();
  parentPort.postMessage('now');
}

if (!isMainThread) {
  if (workerData.endpoint === undefined)
    leaveEmptyWrite();
  else
    work(workerData);
  return;
}

run(async () => {
  const worker = new Worker(__filename, { workerData: {} });
  await once(worker, 'message');
  assert.strictEqual(await worker.terminate(), 1);
});

const openFiles = () => fs.readdirSync('/proc/self/fd').length;

run(async () => {
  const tmpdir = require('../common/tmpdir');
  const { execFileSync } = require('child_process');
  tmpdir.refresh();
  const fifo = tmpdir.resolve('fifo');
  execFileSync('mkfifo', [fifo]);
  let started = 0;
  let before;
  while (started < kWorkers) {
    const terminated = [];
    for (let i = 0; i < kAtOnce; i++) {
      const workerData = {
        endpoint: ['fifo', 'source', 'file', 'stream'][i],
        fifo,
        moment: (started >> 2) % kMoments,
        stop: started % 3 === 0,
      };
      const worker = new Worker(__filename, { workerData });
      started++;
      terminated.push((async () => {
        await once(worker, 'message');
        assert.strictEqual(await worker.terminate(), 1);
      })());
    }
    await Promise.all(terminated);
    await settled(openFiles);
    before ??= openFiles();
    assert(openFiles() <= before, `${openFiles()} > ${before}`);
  }
});
