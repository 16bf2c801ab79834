'use strict';
// A bit of everything that a node executable does: run by test-binary.sh from another folder, without any argument but
// the absolute path of the executable.
const assert = require('assert');
const { fork } = require('child_process');
const { once } = require('events');
const { Worker } = require('worker_threads');

if (process.argv[2] === 'child') {
  process.send({ execPath: process.execPath });
  process.disconnect();
  return;
}

async function viaFork() {
  const child = fork(__filename, ['child']);
  // On a busy machine its end can be seen before its message.
  const exited = once(child, 'exit');
  const [{ execPath }] = await once(child, 'message');
  assert.strictEqual(execPath, process.execPath);
  const [code] = await exited;
  assert.strictEqual(code, 0);
}

async function viaWorker() {
  const worker = new Worker(
    'require("worker_threads").parentPort.postMessage(process.version)',
    { eval: true });
  const exited = once(worker, 'exit');
  const [version] = await once(worker, 'message');
  assert.strictEqual(version, process.version);
  await exited;
}

async function viaFetch() {
  const server = require('http').createServer((req, res) => res.end('ok'));
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const { port } = server.address();
  const response = await fetch(`http://127.0.0.1:${port}/`);
  assert.strictEqual(await response.text(), 'ok');
  server.closeAllConnections();
  server.close();
}

async function viaTls() {
  const tls = require('tls');
  const options = {
    ciphers: 'PSK+HIGH', maxVersion: 'TLSv1.2', checkServerIdentity() {},
    pskCallback: () => ({ psk: Buffer.from('d731ef57be09e5204f0b205b60627028', 'hex'), identity: 'x' }),
  };
  const server = tls.createServer({ ...options, pskCallback: () => options.pskCallback().psk },
                                  (socket) => socket.pipe(socket));
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const client = tls.connect({ port: server.address().port, host: '127.0.0.1', ...options });
  const sent = Buffer.alloc(1 << 20, 'x');
  client.end(sent);
  const received = [];
  for await (const chunk of client) received.push(chunk);
  assert(Buffer.concat(received).equals(sent));
  server.close();
}

async function viaInspector() {
  const inspector = require('inspector');
  const session = new inspector.Session();
  session.connect();
  const { result } = await new Promise((resolve, reject) => session.post(
    'Runtime.evaluate', { expression: '6 * 7' },
    (error, value) => (error ? reject(error) : resolve(value))));
  assert.strictEqual(result.value, 42);
  session.disconnect();
}

async function others() {
  const { promisify } = require('util');
  const zlib = require('zlib');
  const crypto = require('crypto');
  const packed = await promisify(zlib.brotliCompress)('x'.repeat(1000));
  assert.strictEqual((await promisify(zlib.brotliDecompress)(packed)).length, 1000);
  assert.strictEqual((await promisify(crypto.scrypt)('a', 'b', 32)).length, 32);
  assert.strictEqual(require('vm').runInNewContext('a + 1', { a: 1 }), 2);
  assert((await require('fs/promises').readFile(__filename)).length > 1000);
  assert(structuredClone(new Map([[1, 2]])).get(1) === 2);
  assert.strictEqual((await import('node:path')).sep, '/');
  assert.strictEqual(new Intl.NumberFormat('de').format(1234.5), '1.234,5');
  assert.strictEqual((await require('dns/promises').lookup('localhost', 4)).address, '127.0.0.1');
}

(async () => {
  await viaFork();
  await viaWorker();
  await viaFetch();
  await viaTls();
  await viaInspector();
  await others();
  console.log('workload done');
})();
