'use strict';

// Many splices at a time for a long time, each with other speeds, stalls and
// ends, in both directions, over every kind of endpoint. Of every byte it is
// known where it has to be: at the sink, or, when a splice is stopped or its
// endpoint is gone, with JavaScript. At the end the process that splices has no
// more memory, file descriptors and handles than it had.
//
// usage: out/node test/soak/soak.js [--seconds N | --long] [--seed N] [--splices N] [--workers N]
//
// This process makes and checks the payloads. It ends at the first mistake.

const assert = require('assert');
const { fork, spawnSync } = require('child_process');
const { once } = require('events');
const fs = require('fs');
const net = require('net');
const os = require('os');
const path = require('path');
const { setTimeout: sleep } = require('timers/promises');
const tls = require('tls');
const { inspect, parseArgs } = require('util');
const { Receiver, generator, payloadAt, payloadIn, payloadOut } = require('./payload');

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    long: { type: 'boolean', default: false },
    seed: { type: 'string', default: `${process.hrtime.bigint() % 1000000n}` },
    splices: { type: 'string', default: '200' },
    workers: { type: 'string', default: '0' },
  },
});
const keys = path.join(__dirname, '../../out/tree/test/fixtures/keys');
const kSeconds = values.long ? 600 : Number(values.seconds);
const kSplices = Number(values.splices);
const kWorkers = Number(values.workers);
const kSeed = Number(values.seed);
const kMiB = 1024 * 1024;
// As many splices come before the time begins. For the first ones of each thread V8 compiles,
// and its heap and the memory of malloc() grow to what they need.
const kWarmUp = 1000 * Math.max(kWorkers, 1);
// RSS in the last fifth of the time, compared to the second fifth
const kMayGrow = 8 * kMiB;
const kReadAhead = 128 * 1024;
// Nothing that is planned takes nearly as long.
const kHangs = 60_000;

const kPlans = {
  'clean': ['end'],
  'restart': ['end', 'stopped'],
  'stop': ['end', 'stopped'],
  'abort': ['end', 'aborted'],
  'destroy': ['end', 'destroyed'],
  'peer-destroy': ['end', 'error'],
  'peer-reset': ['end', 'error'],
  'endpoint-destroy': ['end', 'error'],
  'endpoint-reset': ['end', 'error'],
};
const kDelivers = ['clean', 'restart', 'stop'];

let passed = 0;
let failed = 0;
let child;

function check(name, test) {
  try {
    test();
    passed++;
    console.log(`ok - ${name}`);
  } catch (err) {
    failed++;
    console.log(`not ok - ${name}: ${err.message} (seed ${kSeed})`);
  }
}

function giveUp(text) {
  console.log(`not ok - ${text} (seed ${kSeed})`);
  console.log(`${passed} passed, ${failed + 1} failed`);
  child?.kill('SIGKILL');
  process.exit(1);
}

function inMiB(bytes) {
  return (bytes / kMiB).toFixed(1);
}

function median(numbers) {
  return numbers.toSorted((a, b) => a - b)[numbers.length >> 1];
}

// A kill breaks off what is being sent and received; what comes of that is looked
// at by the byte.
function ignore() {}

// Unless it has closed already. uv_tcp_close_reset() refuses a socket that is
// being shut down, and then there is never a 'close'. `ending` is the stream whose
// end shuts it down.
function reset(socket, ending = socket) {
  if (socket.destroyed)
    return;
  if (ending.writableEnded && !ending.writableFinished)
    ending.once('finish', () => reset(socket, ending));
  else
    socket.resetAndDestroy();
}

// --- One splice, from outside --------------------------------------------------

const splices = new Map();

class Splice {
  #random;
  #place;
  #ready = Promise.withResolvers();
  #accepted = Promise.withResolvers();
  #result = Promise.withResolvers();
  #failed = Promise.withResolvers();
  #client;
  #raw;
  #other;  // The other side of the endpoint; a file has none.
  #sinkIn;
  #sinkOut;
  #stage = 'opening';
  lastMove = Date.now();

  constructor(id, place) {
    const random = this.#random = generator(kSeed * 1000003 + id);
    const pick = (list) => list[Math.floor(random() * list.length)];
    this.#place = place;
    const kind = pick(['tcp', 'tcp', 'unix', 'unix', 'tls', 'tls', 'fifo', 'file']);
    const isSocket = kind !== 'fifo' && kind !== 'file';
    const direction = pick(isSocket ? ['in', 'out', 'duplex', 'duplex'] : ['in', 'out']);
    const plans = Object.keys(kPlans).filter((name) => {
      if (name === 'endpoint-reset')
        return kind === 'tcp';
      return name !== 'endpoint-destroy' || kind !== 'file';
    });
    const name = random() < 0.4 ? 'clean' : pick(plans);
    const size = () => Math.floor(random() ** 4 * 4 * kMiB);
    const byFd = !isSocket || (kind !== 'tls' && random() < 0.5);
    // Neither the file descriptor of a net.Socket nor what is used afterwards
    const mayClose = (!isSocket || !byFd) && !['restart', 'stop'].includes(name);
    this.spec = {
      id,
      kind,
      version: pick(['TLSv1.2', 'TLSv1.3']),
      direction,
      byFd,
      autoClose: mayClose && random() < 0.5,
      highWaterMark: pick([1024, 16384, 65536, 262144]),
      sizeIn: direction === 'out' ? 0 : size(),
      sizeOut: direction === 'in' ? 0 : size(),
      plan: { name, after: Math.floor(random() ** 2 * (name === 'restart' ? 500 : 3000)) },
    };
    // The sender's and the receiver's: how often it waits, and how long at most.
    const speed = () => pick([
      { often: 0, most: 0 },
      { often: 1, most: 100 },
      { often: 0.05, most: 3000 },
    ]);
    this.speeds = { feed: speed(), sink: speed() };
    this.deadline = new Promise((resolve, reject) => this.#failed.promise.catch(reject));
    this.deadline.catch(ignore);
  }

  toString() {
    const stateOf = (stream) => stream && {
      destroyed: stream.destroyed,
      readableEnded: stream.readableEnded,
      writableFinished: stream.writableFinished,
      writableLength: stream.writableLength,
    };
    return inspect({
      ...this.spec,
      ...this.speeds,
      stage: this.#stage,
      receivedIn: this.#sinkIn?.bytes,
      receivedOut: this.#sinkOut?.bytes,
      client: stateOf(this.#client),
      other: stateOf(this.#other),
    });
  }

  onMessage({ ready, result, failure, description }) {
    if (description !== undefined)
      giveUp(`nothing moves any more: ${this}\n${description}`);
    else if (ready)
      this.#ready.resolve();
    else if (result)
      this.#result.resolve(result);
    else
      this.#failed.reject(new Error(failure));
  }

  accept(socket) {
    this.#accepted.resolve(socket);
  }

  get bytes() {
    return (this.#sinkIn?.bytes ?? 0) + (this.#sinkOut?.bytes ?? 0);
  }

  async run(port) {
    return Promise.race([this.#run(port), this.deadline]);
  }

  async #run(port) {
    const { spec } = this;
    const { id, kind, direction, sizeIn, sizeOut } = spec;
    const opened = this.#openEndpoint();
    child.send({ spec });
    this.#raw = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    this.#client = tls.connect({ socket: this.#raw, servername: `s${id}`, rejectUnauthorized: false });
    for (const socket of [this.#raw, this.#client])
      socket.on('error', ignore);
    await Promise.all([once(this.#client, 'secureConnect'), this.#ready.promise]);
    await opened();

    this.#stage = 'moving';
    const moving = [];
    if (direction !== 'out') {
      moving.push(this.#feed(this.#client, payloadIn(id), sizeIn));
      this.#sinkIn = new Receiver(payloadIn(id));
      if (this.#other)
        moving.push(this.#sink(this.#other, this.#sinkIn, direction === 'in'));
    }
    if (direction !== 'in') {
      if (this.#other)
        moving.push(this.#feed(this.#other, payloadOut(id), sizeOut));
      this.#sinkOut = new Receiver(payloadOut(id));
      moving.push(this.#sink(this.#client, this.#sinkOut, direction === 'out'));
    }
    // The end of what it does not send, and does not look at.
    if (direction === 'in')
      this.#client.resume();
    const timer = setTimeout(() => this.#kill(), spec.plan.after);
    const result = await this.#result.promise;
    this.#stage = 'waiting for the rest';
    await Promise.all(moving);
    clearTimeout(timer);
    this.#client.destroy();
    this.#other?.destroy();
    this.#check(result);
    if (kind === 'file')
      fs.rmSync(spec.address);
    return `${spec.plan.name}: ${result.reason}`;
  }

  // Returns what is left to do when the splice's side of it is open.
  #openEndpoint() {
    const { spec } = this;
    const { kind, direction, id, sizeOut } = spec;
    const { O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY } = fs.constants;
    switch (kind) {
    case 'file': {
      spec.address = `${this.#place.dir}/file${id}`;
      if (direction === 'out') {
        const fd = fs.openSync(spec.address, 'w');
        for (let at = 0; at < sizeOut;)
          at += fs.writeSync(fd, payloadAt(payloadOut(id), at, sizeOut - at));
        fs.closeSync(fd);
      }
      return () => {};
    }
    case 'fifo': {
      spec.address = this.#place.fifo;
      if (direction === 'in') {
        const fd = fs.openSync(spec.address, O_RDONLY | O_NONBLOCK);
        return () => { this.#setOther(new net.Socket({ fd, readable: true, writable: false })); };
      }
      // A writer must find a reader, and a reader no end.
      const both = fs.openSync(spec.address, O_RDWR | O_NONBLOCK);
      const fd = fs.openSync(spec.address, O_WRONLY | O_NONBLOCK);
      return () => {
        this.#setOther(new net.Socket({ fd, readable: false, writable: true }));
        fs.closeSync(both);
      };
    }
    default:
      spec.address = this.#place.addresses[kind];
      return async () => { this.#setOther(await this.#accepted.promise); };
    }
  }

  #setOther(socket) {
    socket.on('error', ignore);
    this.#other = socket;
  }

  async #pace({ often, most }) {
    if (this.#random() < often)
      await sleep(this.#random() * most);
  }

  async #feed(stream, number, size) {
    for (let at = 0; at < size && !stream.destroyed;) {
      const chunk = payloadAt(number, at, Math.min(size - at, 1 + Math.floor(this.#random() * 65536)));
      at += chunk.length;
      this.lastMove = Date.now();
      if (!stream.write(chunk) && !stream.destroyed) {
        await new Promise((resolve) => {
          const done = () => {
            stream.off('drain', done);
            stream.off('close', done);
            resolve();
          };
          stream.on('drain', done);
          stream.on('close', done);
        });
      }
      await this.#pace(this.speeds.feed);
    }
    stream.end();
  }

  // With `ends` there is nothing that it has to send.
  async #sink(stream, receiver, ends) {
    await new Promise((resolve, reject) => {
      let next = 0;
      stream.on('data', async (chunk) => {
        this.lastMove = Date.now();
        try {
          receiver.update(chunk);
        } catch (err) {
          reject(err);
        }
        if (receiver.bytes < next)
          return;
        next = receiver.bytes + 65536 * this.#random();
        stream.pause();
        await this.#pace(this.speeds.sink);
        stream.resume();
      });
      stream.on('end', resolve);
      stream.on('close', resolve);
      if (stream.readableEnded || stream.closed)
        resolve();
    });
    if (ends && stream.writable)
      stream.end();
  }

  #kill() {
    switch (this.spec.plan.name) {
    case 'peer-destroy':
      this.#client.destroy();
      break;
    case 'peer-reset':
      reset(this.#raw, this.#client);
      break;
    case 'endpoint-destroy':
      this.#other.destroy();
      break;
    case 'endpoint-reset':
      reset(this.#other);
      break;
    }
  }

  #check({ bytesIn, bytesOut, rest, reason, closeNotify, code }) {
    const { kind, direction, plan, autoClose, sizeIn, sizeOut, address } = this.spec;
    const text = `${reason} ${code}, ${bytesIn} + ${rest} in, ${bytesOut} out`;
    assert(kPlans[plan.name].includes(reason), text);
    assert.strictEqual(reason === 'error', code !== undefined, text);
    if (code !== undefined)
      assert(['ECONNRESET', 'EPIPE'].includes(code), text);
    if (kind === 'file' && direction === 'in')
      this.#sinkIn.update(fs.readFileSync(address));

    if (direction !== 'out') {
      const { bytes } = this.#sinkIn;
      if (kDelivers.includes(plan.name)) {
        assert.strictEqual(bytesIn + rest, sizeIn, text);
        assert.strictEqual(bytes, sizeIn, text);
        // JavaScript may have read a short one to its end before the splice began.
        assert(plan.name !== 'clean' || closeNotify || sizeIn <= kReadAhead, text);
      } else if (direction === 'in' && !plan.name.startsWith('endpoint') &&
                 !(kind === 'tls' && autoClose && reason !== 'end')) {
        // What it says that it has delivered. (In a duplex one that is killed, a
        // reset may overtake it. With autoClose, any reason but 'end' destroys the
        // endpoint at once, and another TLSSocket has then taken bytes that it has
        // not sent.)
        assert.strictEqual(bytes, bytesIn, text);
      } else {
        assert(bytes <= bytesIn, `${bytes} of ${text}`);
      }
    }
    if (direction !== 'in') {
      const { bytes } = this.#sinkOut;
      if (kDelivers.includes(plan.name))
        assert.strictEqual(bytes, sizeOut, text);
      else
        assert(bytes <= bytesOut, `${bytes} of ${text}`);
      if (plan.name === 'clean')
        assert.strictEqual(bytesOut, sizeOut, text);
    }
  }
}

// --- All of them ------------------------------------------------------------------

async function listen(options, credentials) {
  const server = (credentials ? tls : net).createServer({ allowHalfOpen: true, ...credentials }, async (socket) => {
    socket.on('error', ignore);
    // Which splice it is for
    let header;
    while ((header = socket.read(8)) === null)
      await once(socket, 'readable');
    socket.removeAllListeners('readable');
    splices.get(header.readDoubleLE()).accept(socket);
  });
  server.listen(options);
  await once(server, 'listening');
  return server;
}

async function startChild() {
  const started = fork(path.join(__dirname, 'splicer.js'), kWorkers ? [`${kWorkers}`] : [], {
    // V8 is to keep little that it does not need, so that a leak shows.
    execArgv: ['--expose-gc', '--no-warnings', '--max-semi-space-size=1'],
  });
  // Its exit is looked at.
  started.on('error', ignore);
  const { 0: { ports } } = await once(started, 'message');
  return { started, ports };
}

async function main() {
  console.log(`seed ${kSeed}, ${kSplices} splices at a time, ${kSeconds} s, ${kWorkers || 'no'} Workers`);
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'soak-'));
  process.on('exit', () => fs.rmSync(dir, { recursive: true, force: true }));
  const servers = {
    tcp: await listen({ port: 0, host: '127.0.0.1' }),
    unix: await listen({ path: `${dir}/socket` }),
    tls: await listen({ port: 0, host: '127.0.0.1' }, {
      key: fs.readFileSync(path.join(keys, 'ec-key.pem')),
      cert: fs.readFileSync(path.join(keys, 'ec-cert.pem')),
    }),
  };
  const addresses = {
    tcp: { port: servers.tcp.address().port, host: '127.0.0.1' },
    unix: { path: `${dir}/socket` },
    tls: { port: servers.tls.address().port, host: '127.0.0.1' },
  };
  const fifos = Array.from({ length: kSplices }, (_, i) => `${dir}/fifo${i}`);
  assert.strictEqual(spawnSync('mkfifo', fifos).status, 0);

  const { started, ports } = await startChild();
  child = started;
  let isOver = false;
  let last = { rss: 0, fds: 0 };
  const samples = [];
  let finish;
  const finished = new Promise((resolve) => { finish = resolve; });
  child.on('exit', (code, signal) => {
    if (!isOver)
      giveUp(`the process that splices has ended: ${signal ?? code}`);
  });
  child.on('message', (message) => {
    if (message.id !== undefined) {
      splices.get(message.id)?.onMessage(message);
    } else if (message.rss !== undefined) {
      last = message;
      samples.push(message.rss);
    } else {
      finish(message);
    }
  });

  let done = 0;
  let bytes = 0;
  const outcomes = {};
  const report = () => {
    console.log(`${done} splices, ${inMiB(bytes)} MiB; RSS ${inMiB(last.rss)} MiB, ${last.fds} file descriptors`);
  };
  const measuring = setInterval(() => child.send('measure'), Math.min(1000, kSeconds * 5));
  const reporting = setInterval(report, 10_000);
  const watching = setInterval(() => {
    for (const splice of splices.values()) {
      if (Date.now() - splice.lastMove > kHangs) {
        // The answer ends it.
        child.send({ describe: splice.spec.id });
        return;
      }
    }
  }, 5_000);
  let end = Infinity;
  let nextId = 0;
  await Promise.all(fifos.map(async (fifo) => {
    while (Date.now() < end) {
      const id = nextId++;
      const splice = new Splice(id, { dir, fifo, addresses });
      splices.set(id, splice);
      try {
        const outcome = await splice.run(ports[id % ports.length]);
        outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
      } catch (err) {
        giveUp(`${err.stack}\n${splice}`);
      }
      splices.delete(id);
      bytes += splice.bytes;
      done++;
      if (done === kWarmUp) {
        samples.length = 0;
        end = Date.now() + kSeconds * 1000;
      }
    }
    // Those that end later are too few to be compared with.
    clearInterval(measuring);
  }));
  clearInterval(reporting);
  report();

  // The end of the process that splices
  isOver = true;
  const exited = once(child, 'exit');
  child.send('finish');
  const { before, after } = await finished;
  const hanging = setTimeout(() => giveUp('the process that splices does not end'), kHangs);
  const { 0: code } = await exited;
  clearTimeout(hanging);
  clearInterval(watching);
  for (const server of Object.values(servers))
    server.close();

  const fifths = [0, 1, 2, 3, 4].map((i) => {
    return median(samples.slice(samples.length * i / 5, samples.length * (i + 1) / 5));
  });
  const grown = fifths[4] - fifths[1];
  console.log(Object.entries(outcomes).sort().map(([name, n]) => `${name} ${n}`).join(', '));
  console.log(`RSS by fifths of the time: ${fifths.map(inMiB).join(', ')} MiB`);
  check(`every byte of ${done} splices is where it has to be`, () => {});
  check('no file descriptor is left', () => assert.strictEqual(after.fds, before.fds));
  check('no handle is left', () => assert.strictEqual(after.resources, before.resources));
  check('nothing keeps the process alive', () => assert.strictEqual(code, 0));
  check('the memory stays', () => assert(grown <= kMayGrow, `${inMiB(grown)} MiB more at the end`));
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 ? 0 : 1);
}

main();
