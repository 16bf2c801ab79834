'use strict';

// The forwarder that the benchmark measures, on Node: each TLS connection is
// joined to one to the endpoint, by the pump that is asked for. It answers
// each message with what has happened since the one before.
//
// With --workers N the main thread only accepts the connections, and hands them to
// N Workers in turn. With --compute the main thread computes for 50 ms in every 100.
// With --beside another process does all of the work, and this one is idle.

const dgram = require('node:dgram');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const tls = require('node:tls');
const { fork } = require('node:child_process');
const { once } = require('node:events');
const { monitorEventLoopDelay, performance } = require('node:perf_hooks');
const { Writable, pipeline } = require('node:stream');
const { parseArgs } = require('node:util');
const { Worker, isMainThread, parentPort } = require('node:worker_threads');

const { values: args } = parseArgs({ options: {
  port: { type: 'string' },
  upstream: { type: 'string' },
  pump: { type: 'string' },
  delay: { type: 'boolean', default: false },
  workers: { type: 'string', default: '0' },
  compute: { type: 'boolean', default: false },
  beside: { type: 'boolean', default: false },
  cert: { type: 'string' },
  key: { type: 'string' },
} });

const [kind, address] = args.upstream.split(':');
const cert = fs.readFileSync(args.cert);
// The handle of each splice, and the socket that has the other descriptor of its endpoint, if
// there is one.
const handles = new Map();
let joining = 0;
// How many of them are in use, if each connection has one.
let fifos = 0;
let queues = 0;

// Each is given the TLS socket, and what to write to and to read from.
const pumps = {
  // What the connections cost by themselves.
  'none'() {},
  'pipe'(client, sink, source) {
    client.pipe(sink);
    source.pipe(client);
  },
  'pipeline'(client, sink, source) {
    pipeline(client, sink, () => {});
    pipeline(source, client, () => {});
  },
  'splice'(client, sink, source) {
    splice(client, { stream: sink });
  },
  'splice-fd'(client, sink, source) {
    if (sink === source)
      return splice(client, { fd: sink._handle.fd }, sink);
    splice(client, { fd: sink, direction: 'in' });
    splice(client, { fd: source, direction: 'out' });
  },
};

// One of each for all splices, so that none of their memory is this program's.
function ignore() {}

function forget() {
  handles.get(this)?.destroy();
  handles.delete(this);
}

function splice(client, options, endpoint) {
  const handle = client.spliceTo(options);
  handles.set(handle, endpoint);
  handle.on('error', ignore);
  handle.on('close', forget);
  handle.start();
}

// The same for a TUN device, whose packets follow one another in the TLS
// stream. It is given the device's descriptor.
const tunnels = {
  'splice'(client, fd) {
    splice(client, { fd });
  },
  // As native addons do it: each packet that can be read is an event, each
  // packet is written at once. This is not the way to do it, but the only one
  // without an addon: Node's streams refuse a TUN device.
  'pipe'(client, fd) {
    const { Pipe, constants } = process.binding('pipe_wrap');
    const handle = new Pipe(constants.SOCKET);
    handle.open(fd);
    const source = new net.Socket({ handle, readable: true, writable: false });
    source.on('data', (packet) => {
      if (!client.write(packet))
        source.pause();
    });
    client.on('drain', () => source.resume());
    client.on('data', cut((packet) => fs.writeSync(fd, packet)));
  },
  // The same with nothing but fs.
  'pipe-fs'(client, fd) {
    const sink = new Writable({
      write(packet, encoding, callback) {
        fs.write(fd, packet, callback);
      },
    });
    client.on('data', cut((packet) => {
      if (!sink.write(packet))
        client.pause();
    }));
    sink.on('drain', () => client.resume());
    const buffer = Buffer.alloc(65536);
    (function next() {
      fs.read(fd, buffer, 0, buffer.length, null, (err, n) => {
        if (err)
          return client.destroy(err);
        if (client.write(Buffer.from(buffer.subarray(0, n))))
          next();
        else
          client.once('drain', next);
      });
    })();
  },
};

// And for a UDP socket, in place of which the splice is given its descriptor.
const datagrams = {
  'splice'(client, socket) {
    splice(client, { fd: socket._handle.fd });
    socket.close();
  },
  'pipe'(client, socket) {
    client.on('data', cut((framed) => socket.send(framed.subarray(2)), framedLength));
    socket.on('message', (message) => {
      const length = Buffer.allocUnsafe(2);
      length.writeUInt16BE(message.length);
      client.cork();
      client.write(length);
      client.write(message);
      client.uncork();
    });
  },
};

// The bytes that the packet at the start of `bytes` has; more, if that is not known.
function packetLength(bytes) {
  if (bytes.length < 6)
    return Infinity;
  return bytes[0] >> 4 === 4 ? bytes.readUInt16BE(2) : 40 + bytes.readUInt16BE(4);
}

function framedLength(bytes) {
  return bytes.length < 2 ? Infinity : 2 + bytes.readUInt16BE(0);
}

// Of chunks, in which packets begin and end anywhere.
function cut(write, lengthOf = packetLength) {
  let rest = Buffer.alloc(0);
  return (chunk) => {
    let bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    for (let length; (length = lengthOf(bytes)) <= bytes.length; bytes = bytes.subarray(length))
      write(bytes.subarray(0, length));
    rest = bytes;
  };
}

function openFifos() {
  const number = fifos++;
  const sink = fs.openSync(path.join(address, `in${number}`), fs.constants.O_WRONLY | fs.constants.O_NONBLOCK);
  const source = fs.openSync(path.join(address, `out${number}`), fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  if (args.pump === 'splice-fd')
    return [sink, source];
  return [
    new net.Socket({ fd: sink, readable: false, writable: true }),
    new net.Socket({ fd: source, readable: true, writable: false }),
  ];
}

async function connectTLS() {
  // The server has the same certificate.
  const socket = tls.connect({ port: address, host: '127.0.0.1', servername: 'localhost', ca: cert });
  socket.setNoDelay();
  socket.on('error', () => {});
  await once(socket, 'secureConnect');
  return [socket, socket];
}

async function connect() {
  const options = kind === 'unix' ? { path: address } : { port: address, host: '127.0.0.1', noDelay: true };
  const socket = net.connect(options);
  socket.on('error', () => {});
  // Node must not read from a socket whose descriptor somebody else reads.
  if (args.pump === 'splice-fd')
    socket.pause();
  await once(socket, 'connect');
  return [socket, socket];
}

async function connectUDP() {
  const socket = dgram.createSocket('udp4');
  socket.connect(Number(address), '127.0.0.1');
  await once(socket, 'connect');
  return socket;
}

async function serve(client) {
  joining++;
  client.on('error', () => {});
  try {
    if (kind === 'tun')
      return tunnels[args.pump](client, Number(process.env.TUN_FD) + queues++);
    if (kind === 'udp')
      return datagrams[args.pump](client, await connectUDP());
    const connectors = { fifo: openFifos, tls: connectTLS };
    const [sink, source] = await (connectors[kind] ?? connect)();
    pumps[args.pump](client, sink, source);
  } finally {
    joining--;
  }
}

function answer() {
  const delay = args.delay ? monitorEventLoopDelay({ resolution: 1 }) : undefined;
  delay?.enable();
  let loop = performance.eventLoopUtilization();
  process.on('message', function report() {
    if (joining > 0)
      return setTimeout(report, 1);
    // What is garbage already should not count as memory that is held. Finalizers
    // that the first one leaves to do make more of it.
    globalThis.gc?.();
    globalThis.gc?.();
    const stats = Array.from(handles.keys(), (handle) => handle.stats);
    process.send({
      loop: performance.eventLoopUtilization(loop).utilization,
      delay: delay && delay.percentile(99) / 1e6,
      buffered: Math.max(0, ...stats.map(({ peakBufferedIn, peakBufferedOut }) =>
        Math.max(peakBufferedIn, peakBufferedOut))),
    });
    loop = performance.eventLoopUtilization();
    delay?.reset();
  });
}

function compute() {
  setInterval(() => {
    const end = performance.now() + 50;
    while (performance.now() < end);
  }, 100);
}

function handOut() {
  const workers = Array.from({ length: Number(args.workers) }, () =>
    new Worker(__filename, { argv: process.argv.slice(2) }));
  let next = 0;
  return net.createServer({ noDelay: true }, (socket) => {
    workers[next++ % workers.length].postMessage(socket, [socket]);
  });
}

function createServer() {
  return tls.createServer({ key: fs.readFileSync(args.key), cert, noDelay: true }, serve);
}

if (!isMainThread) {
  const server = createServer();
  parentPort.on('message', (socket) => server.emit('connection', socket));
} else if (args.beside) {
  answer();
  fork(__filename, process.argv.slice(2).filter((arg) => arg !== '--beside'));
} else {
  answer();
  const server = args.workers === '0' ? createServer() : handOut();
  server.listen(args.port, '127.0.0.1', 1024);
  if (args.compute)
    compute();
}
