'use strict';

// tools/examples/worker-pool.js: many clients, Workers that fail in the middle of transfers, and the end of the pool.
// Every byte that a client sends comes back from a server behind the pool, and is compared by hash.
//
// usage: test/pool/run [WORD]: the tests with WORD in their name, or all

const assert = require('assert');
const { createHash, randomBytes } = require('crypto');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const tls = require('tls');

const { ip, kRepo, killAll, run, start } = require('../tun/net');

const kPool = `${kRepo}/tools/examples/worker-pool.js`;
const kControl = path.join(__dirname, 'control.js');
const kMiB = 1 << 20;
// What a client has sent, and not got back yet, at most.
const kAhead = kMiB;
const kConnections = 10_000;
const kAtOnce = 100;

const work = fs.mkdtempSync(path.join(os.tmpdir(), 'pool-'));
process.chdir(work);

const tests = [];
function test(name, body) {
  tests.push({ name, body });
}

// --- The server behind the pool -------------------------------------------------------------------------------------

// Sends back what it gets. `most` is how many connections it has had at a time.
class Echo {
  open = new Set();
  most = 0;
  #server = net.createServer({ allowHalfOpen: true }, (socket) => {
    this.open.add(socket);
    this.most = Math.max(this.most, this.open.size);
    socket.on('error', () => {});
    socket.on('close', () => this.open.delete(socket));
    socket.pipe(socket);
  });

  async listen() {
    this.#server.listen(0, '127.0.0.1', 4096);
    await once(this.#server, 'listening');
    return this.#server.address().port;
  }

  close() {
    this.#server.close();
    for (const socket of this.open)
      socket.destroy();
  }
}

// --- Clients --------------------------------------------------------------------------------------------------------

const block = randomBytes(kMiB);
let secureContext;

// Sends `size` bytes, by default as many as there is time for until finish(), and reads them again.
class Client {
  sent = 0;
  received = 0;
  #size;
  #sentHash = createHash('sha256');
  #receivedHash = createHash('sha256');
  #waiting = [];
  #isEnded = false;

  constructor(port, { size = Infinity, servername = 'localhost', session } = {}) {
    this.#size = size;
    this.socket = tls.connect({
      port, servername, session, secureContext, host: '127.0.0.1', allowHalfOpen: true,
      // What servername asks for may be no name of the server.
      checkServerIdentity: () => undefined,
    });
    // Whether it was whole is looked at by the byte.
    this.socket.on('error', () => {});
    this.socket.on('secureConnect', () => this.#write());
    this.socket.on('drain', () => this.#write());
    this.socket.on('data', (chunk) => {
      this.received += chunk.length;
      this.#receivedHash.update(chunk);
      this.#look();
      this.#write();
    });
    this.socket.on('end', () => {
      this.#isEnded = true;
      // What is on the way is lost. More of it may be missing than a client may be ahead, so that nothing would be
      // written any more, and the connection would stay open.
      if (!this.socket.writableEnded)
        this.socket.destroy();
    });
    this.isClosed = false;
    // Fulfilled with whether all has come back, and then the end.
    this.whole = new Promise((resolve) => this.socket.on('close', () => {
      this.isClosed = true;
      this.#look();
      resolve(this.#isEnded && this.sent === this.#size &&
              this.#sentHash.digest('hex') === this.#receivedHash.digest('hex'));
    }));
  }

  #write() {
    if (this.socket.writableNeedDrain || this.socket.writableEnded || this.socket.destroyed)
      return;
    while (this.sent < this.#size) {
      if (this.sent - this.received >= kAhead)
        return;
      const at = this.sent % kMiB;
      const chunk = block.subarray(at, Math.min(at + 65536, kMiB, at + this.#size - this.sent));
      this.sent += chunk.length;
      this.#sentHash.update(chunk);
      if (!this.socket.write(chunk))
        return;
    }
    this.socket.end();
  }

  // Nothing more is sent.
  finish() {
    this.#size = this.sent;
    this.#write();
  }

  #look() {
    this.#waiting = this.#waiting.filter(({ bytes, resolve, reject }) => {
      if (this.received >= bytes)
        resolve();
      else if (this.isClosed)
        reject(new Error(`closed after ${this.received} bytes`));
      else
        return true;
      return false;
    });
  }

  // Fulfilled when so many more bytes have come back.
  more(bytes) {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ bytes: this.received + bytes, resolve, reject });
      this.#look();
    });
  }
}

// Clients that send until they are told to finish, each of them in the middle of it.
async function busyClients(count, port) {
  const clients = Array.from({ length: count }, () => new Client(port));
  await Promise.all(clients.map((client) => client.more(kMiB)));
  return clients;
}

async function finish(clients) {
  for (const client of clients)
    client.finish();
  for (const client of clients)
    assert(await client.whole, `${client.received} of ${client.sent} bytes have come back`);
}

// Until then, clients may still be served.
async function nobodyListens(port) {
  for (;;) {
    const late = new Client(port, { size: 0 });
    const [err] = await Promise.race([once(late.socket, 'error').catch((err) => [err]), late.whole.then(() => [])]);
    if (err?.code === 'ECONNREFUSED')
      return;
  }
}

// --- The pool -------------------------------------------------------------------------------------------------------

const kWorkerLine = /^worker (\d+): (\d+) connections open, (\d+) done, (\d+) bytes in, (\d+) bytes out$/;

class Pool {
  static async start(workers, ...args) {
    const pool = new Pool();
    pool.workers = workers;
    pool.echo = new Echo();
    pool.process = start('a', Pool.command(workers, '--tcp', `127.0.0.1:${await pool.echo.listen()}`, ...args));
    [, pool.port] = await pool.process.next(/^listening on 127\.0\.0\.1:(\d+)$/);
    return pool;
  }

  static command(workers, ...args) {
    return [process.execPath, ...Pool.flags, kPool, ...Pool.arguments(workers, ...args)];
  }

  static flags = ['--disable-warning=ExperimentalWarning', '--require', kControl];

  static arguments(workers, ...args) {
    return ['--port', '0', '--key', 'key.pem', '--cert', 'cert.pem', '--workers', `${workers}`, ...args];
  }

  get output() {
    return this.process.output;
  }

  signal(name) {
    this.process.child.kill(name);
  }

  async #lines() {
    const lines = [];
    for (let i = 0; i < this.workers; i++) {
      const [, , ...numbers] = await this.process.next(kWorkerLine);
      const [open, done, bytesIn, bytesOut] = numbers.map(Number);
      lines.push({ open, done, bytesIn, bytesOut });
    }
    return lines;
  }

  // Of each Worker, when all connections are over and counted.
  async stats() {
    for (;;) {
      this.signal('SIGUSR2');
      const lines = await this.#lines();
      assert(lines.every(({ open }) => open >= 0), 'A connection was counted twice');
      if (lines.every(({ open }) => open === 0))
        return lines;
    }
  }

  fds() {
    return fs.readdirSync(`/proc/${this.process.child.pid}/fd`).length;
  }

  // It ends by itself, once all is done; the stats that it prints then.
  async stop() {
    this.signal('SIGTERM');
    const lines = await this.#lines();
    assert.strictEqual(await this.process.exited, 0, this.output);
    this.echo.close();
    return lines;
  }
}

const sum = (lines, name) => lines.reduce((total, line) => total + line[name], 0);

function assertMoved(lines, clients) {
  const bytes = clients.reduce((total, { sent }) => total + sent, 0);
  assert.deepStrictEqual([sum(lines, 'done'), sum(lines, 'bytesIn'), sum(lines, 'bytesOut')],
                         [clients.length, bytes, bytes]);
}

// --- Tests ----------------------------------------------------------------------------------------------------------

test(`every byte of ${kConnections} connections over 4 Workers is accounted for`, async () => {
  const pool = await Pool.start(4);
  const first = new Client(pool.port, { size: 1 });
  const [session] = await once(first.socket, 'session');
  assert(await first.whole);
  const clients = [first];
  let next = 1;
  await Promise.all(Array.from({ length: kAtOnce }, async () => {
    while (next < kConnections) {
      const i = next++;
      const size = i % 500 === 0 ? kMiB + i : i * 7919 % 20_000;
      // A session of one Worker, in all of them.
      const client = new Client(pool.port, { size, session: i % 2 ? session : undefined });
      await once(client.socket, 'secureConnect');
      assert.strictEqual(client.socket.isSessionReused(), i % 2 === 1);
      assert(await client.whole, `${client.received} of ${size} bytes have come back to client ${i}`);
      clients.push({ sent: client.sent });
    }
  }));
  const lines = await pool.stats();
  assertMoved(lines, clients);
  for (const { done } of lines)
    assert(done > kConnections / 8, `${done} connections`);
  await pool.stop();
});

for (const [how, fail] of Object.entries({
  'throws an exception': (pool) => new Client(pool.port, { servername: 'throw.example' }),
  'calls process.exit()': (pool) => new Client(pool.port, { servername: 'exit.example' }),
  'is terminated': (pool) => pool.signal('SIGALRM'),
})) {
  test(`a Worker ${how} in the middle of transfers`, async () => {
    const pool = await Pool.start(3);
    await finish(await busyClients(6, pool.port));
    await pool.stats();
    const fds = pool.fds();

    const clients = await busyClients(6, pool.port);
    const broken = [];
    const twoAreBroken = new Promise((resolve) => {
      for (const client of clients) {
        client.whole.then((isWhole) => {
          if (!isWhole && broken.push(client) === 2)
            resolve();
        });
      }
    });
    fail(pool);
    await twoAreBroken;
    // The others go on.
    const others = clients.filter((client) => !broken.includes(client));
    await Promise.all(others.map((client) => client.more(4 * kMiB)));
    await finish(others);
    assert.strictEqual(broken.length, 2);
    // So does the main thread. It knows that the Worker has ended once no connection counts as open, and gives it no
    // more connections. The Worker is replaced.
    await pool.stats();
    await finish(await busyClients(6, pool.port));
    await pool.stats();
    // A Worker closes the sockets before it says that a connection is over.
    assert(pool.fds() <= fds, `${pool.fds()} file descriptors instead of ${fds}`);
    await pool.stop();
    if (how === 'throws an exception')
      assert.match(pool.output, /^A worker has failed: Error: as the client has asked for\n {4}at .*control\.js:\d+/m);
    else
      assert.doesNotMatch(pool.output, /A worker has failed/);
  });
}

// Once it has ended, or as many Workers have failed as there are if they are replaced.
function endOf(started) {
  const failures = Array.from({ length: 4 }, () => started.next(/^A worker has failed: .* a broken one$/));
  return Promise.race([started.exited, Promise.all(failures).catch(() => started.exited)]);
}

test('a Worker that cannot start is not replaced: the pool ends when transfers have', async () => {
  const pool = await Pool.start(3);
  const clients = await busyClients(6, pool.port);
  fs.writeFileSync('broken', '');
  const end = endOf(pool.process);
  pool.signal('SIGALRM');
  const wholes = clients.map(({ whole }) => whole);
  await Promise.all(clients.map((client) => client.more(4 * kMiB).then(() => client.finish(), () => {})));
  assert.strictEqual((await Promise.all(wholes)).filter((isWhole) => isWhole).length, 4, pool.output);
  assert.strictEqual(await end, 1, pool.output);
  assert.strictEqual(pool.output.match(/A worker has failed/g).length, 1);
  pool.echo.close();

  // No Worker can start.
  const none = start('a', Pool.command(3));
  assert.strictEqual(await endOf(none), 1, none.output);
  assert.strictEqual(none.output.match(/A worker has failed/g).length, 3);
  fs.rmSync('broken');
});

test('process.exit() in the main thread in the middle of transfers', async () => {
  const pool = await Pool.start(3);
  const clients = await busyClients(6, pool.port);
  const closed = [...pool.echo.open].map((socket) => new Promise((resolve) => socket.once('close', resolve)));
  pool.signal('SIGHUP');
  assert.strictEqual(await pool.process.exited, 3, pool.output);
  for (const client of clients)
    assert(!await client.whole);
  await Promise.all(closed);
  pool.echo.close();
});

test('SIGTERM lets transfers come to their end, and no others begin', async () => {
  const pool = await Pool.start(3);
  const clients = await busyClients(6, pool.port);
  const stopped = pool.stop();
  await nobodyListens(pool.port);
  await Promise.all(clients.map((client) => client.more(4 * kMiB)));
  await finish(clients);
  const lines = await stopped;
  const bytes = clients.reduce((total, { sent }) => total + sent, 0);
  assert.strictEqual(sum(lines, 'bytesIn'), bytes);
  assert.strictEqual(sum(lines, 'bytesOut'), bytes);
});

test('another signal ends the pool at once', async () => {
  for (const signals of [['SIGTERM', 'SIGINT'], ['SIGINT', 'SIGTERM'], ['SIGINT', 'SIGINT']]) {
    const pool = await Pool.start(2);
    const { exited } = pool.process;
    const clients = await busyClients(4, pool.port);
    pool.signal(signals[0]);
    await nobodyListens(pool.port);
    pool.signal(signals[1]);
    const goesOn = Promise.all(clients.map((client) => client.more(64 * kMiB))).then(() => 'goes on', () => exited);
    assert.strictEqual(await Promise.race([exited, goesOn]), signals[1], pool.output);
    for (const client of clients)
      assert(!await client.whole);
    pool.echo.close();
  }
});

test('clients wait while the Workers have as many connections as they may have', async () => {
  const pool = await Pool.start(2, '--connections', '1');
  const busy = await busyClients(2, pool.port);
  // What these send before the handshake is there when a Worker gets them.
  const waiting = Array.from({ length: 6 }, () => new Client(pool.port, { size: kMiB }));
  await Promise.all(waiting.map(({ socket }) => once(socket, 'connect')));
  await Promise.all(busy.map((client) => client.more(4 * kMiB)));
  assert(waiting.every(({ received }) => received === 0));
  await finish(busy);
  for (const client of waiting)
    assert(await client.whole);
  assert.strictEqual(pool.echo.most, 2);
  assertMoved(await pool.stats(), [...busy, ...waiting]);

  // At SIGTERM nobody is left waiting.
  const last = await busyClients(2, pool.port);
  const late = new Client(pool.port, { size: 1 });
  await once(late.socket, 'connect');
  // The main thread has accepted it: one that came after it is not answered, either.
  pool.signal('SIGUSR2');
  await pool.process.next(/^worker 1/);
  const stopped = pool.stop();
  assert(!await late.whole);
  await finish(last);
  await stopped;
});

test('a connection without a handshake makes room for the next one', async () => {
  const pool = await Pool.start(1, '--connections', '1');
  const garbage = net.connect(pool.port, '127.0.0.1');
  garbage.on('error', () => {});
  garbage.end('GET / HTTP/1.1\r\n\r\n');
  garbage.resume();
  const client = new Client(pool.port, { size: kMiB });
  assert(await client.whole);
  const [{ done, bytesIn }] = await pool.stats();
  assert.strictEqual(done, 2);
  assert.strictEqual(bytesIn, kMiB);
  await pool.stop();
});

test('a handshake that takes too long makes room for the next one, and is not continued', async () => {
  const pool = await Pool.start(1, '--connections', '1');
  const late = new Client(pool.port, { size: 1, servername: 'late.example' });
  assert(!await late.whole);
  const client = new Client(pool.port, { size: kMiB });
  assert(await client.whole);
  const [{ done, bytesIn }] = await pool.stats();
  assert.strictEqual(done, 2);
  assert.strictEqual(bytesIn, kMiB);
  await pool.stop();
});

test('in the processes of a cluster', async () => {
  const echo = new Echo();
  const script = `
    const cluster = require('cluster');
    const { once } = require('events');
    const [count, exec, ...args] = process.argv.slice(1);
    cluster.setupPrimary({ exec, args, execArgv: ${JSON.stringify(Pool.flags)} });
    for (let i = 0; i < count; i++) {
      const worker = cluster.fork();
      console.log('process', worker.process.pid);
      // When it has disconnected, too, it is given no more connections.
      Promise.all([once(worker, 'exit'), once(worker, 'disconnect')])
        .then(([[code, signal]]) => console.log('over', worker.process.pid, signal ?? code));
    }
    process.on('SIGTERM', () => {
      for (const worker of Object.values(cluster.workers)) {
        worker.process.kill('SIGTERM');
        worker.disconnect();
      }
    });`;
  const primary = start('a', [process.execPath, '-e', script, '2', kPool,
                              ...Pool.arguments(2, '--tcp', `127.0.0.1:${await echo.listen()}`)]);
  const pids = [];
  for (let i = 0; i < 2; i++)
    pids.push(Number((await primary.next(/^process (\d+)$/))[1]));
  let port;
  for (let i = 0; i < 2; i++)
    [, port] = await primary.next(/^listening on 127\.0\.0\.1:(\d+)$/);

  const clients = await busyClients(8, port);
  process.kill(pids[0], 'SIGKILL');
  await primary.next(new RegExp(`^over ${pids[0]} SIGKILL$`));
  const isBroken = await Promise.all(clients.map(async (client) => {
    // It is closed, or goes on.
    return client.more(4 * kMiB).then(() => false, () => true);
  }));
  // The cluster gives connections to whichever process is free.
  assert(isBroken.includes(true) && isBroken.includes(false), `${isBroken}`);
  await finish(clients.filter((client, i) => !isBroken[i]));
  await finish(await busyClients(4, port));
  primary.child.kill('SIGTERM');
  await primary.next(new RegExp(`^over ${pids[1]} 0$`));
  assert.strictEqual(await primary.exited, 0);
  echo.close();
});

async function main() {
  ip('a', 'link set lo up');
  run('a', ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-noenc', '-days', '2',
            '-subj', '/CN=localhost', '-keyout', 'key.pem', '-out', 'cert.pem']);
  secureContext = tls.createSecureContext({ ca: fs.readFileSync('cert.pem') });
  const word = process.argv[2] ?? '';
  let passed = 0;
  let failed = 0;
  for (const { name, body } of tests) {
    if (!name.includes(word))
      continue;
    const begin = process.hrtime.bigint();
    try {
      await body();
      passed++;
      console.log(`ok - ${name} (${Math.round(Number(process.hrtime.bigint() - begin) / 1e6)} ms)`);
    } catch (err) {
      failed++;
      console.log(`not ok - ${name}\n${err.stack.replace(/^/gm, '    ')}`);
    }
    await killAll();
  }
  process.chdir('/');
  fs.rmSync(work, { recursive: true });
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

main();
