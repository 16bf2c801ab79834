'use strict';

// tls-terminator.js on all cores: the main thread accepts connections and hands
// them to Workers, where TLS and the splices are. So the main thread stays free, and
// JavaScript that computes there delays no connection.
//
//   node worker-pool.js --unix app.sock --key key.pem --cert cert.pem
//   node worker-pool.js --tcp [HOST:]PORT --key key.pem --cert cert.pem
//
// With --workers N there are N Workers (by default, one for each core), with at most
// --connections N each (by default 1000). A Worker that fails is replaced; if one cannot
// even start, the process ends as it does at SIGTERM, but with code 1. SIGUSR2 prints
// what each of them has moved. SIGTERM and SIGINT end the process when the last
// connection has ended; a second one ends it at once.

const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const tls = require('node:tls');
const { randomBytes } = require('node:crypto');
const { parseArgs } = require('node:util');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');

// --- In a Worker ---

function work({ options, target }) {
  // This server does not listen: it gets its connections from the main thread. All
  // that tls.createServer() offers works here, such as SNICallback and requestCert.
  const server = tls.createServer(options, serve);
  server.on('tlsClientError', (err, client) => {
    client.destroy();  // After a timeout the handshake would go on.
    report(client);
  });
  parentPort.on('message', (message) => {
    if (message === 'stop')
      parentPort.unref();  // The Worker ends with its last connection.
    else
      server.emit('connection', message);
  });
  parentPort.postMessage('ready');

  async function serve(client) {
    const name = `${client.remoteAddress}:${client.remotePort}`;
    const upstream = net.connect({ ...target, allowHalfOpen: true });
    // The timeout sees the bytes that go past JavaScript, too.
    client.setTimeout(120_000, () => client.destroy());
    try {
      // It begins when the upstream is connected, and fails if that fails.
      await client.pipeToNative(upstream);
    } catch (err) {
      console.error(`${name} failed: ${err.message}`);
    } finally {
      client.destroy();
      upstream.destroy();
      report(client);
    }
  }

  // Once for each connection, with the bytes of cleartext that it has moved.
  function report({ bytesRead, bytesWritten }) {
    parentPort.postMessage({ bytesIn: bytesRead, bytesOut: bytesWritten });
  }
}

// --- In the main thread ---

function main() {
  const { values: args } = parseArgs({ options: {
    host: { type: 'string', default: '127.0.0.1' },
    port: { type: 'string', default: '8443' },
    unix: { type: 'string', default: 'app.sock' },
    tcp: { type: 'string' },
    key: { type: 'string', default: 'key.pem' },
    cert: { type: 'string', default: 'cert.pem' },
    workers: { type: 'string', default: `${os.availableParallelism()}` },
    connections: { type: 'string', default: '1000' },
  } });
  // A port alone is one of this machine's.
  const [port, host] = args.tcp?.split(/:(?=\d+$)/).reverse() ?? [];
  const target = port ? { host, port: Number(port) } : { path: args.unix };
  const options = {
    key: fs.readFileSync(args.key),
    cert: fs.readFileSync(args.cert),
    allowHalfOpen: true,
    handshakeTimeout: 30_000,  // Others may be waiting for the place.
    ticketKeys: randomBytes(48),  // A session of one Worker can be resumed in another one.
  };
  // A mistake in the options ends this process, and not each Worker after the other.
  tls.createSecureContext(options);

  // Accepted connections for which no Worker has had room yet. Nobody reads from them.
  const waiting = [];
  let isStopping = false;
  // How many Workers there have to be before the first connection: then all have a share of it.
  let starting = Number(args.workers);

  // What a place of the pool has done is counted across all the Workers that it has had.
  function fill(place) {
    place.isReady = false;
    place.open = 0;  // The connections of a Worker are closed when it ends.
    place.worker = new Worker(__filename, { workerData: { options, target } });
    place.worker.once('message', () => {
      place.isReady = true;
      place.worker.on('message', ({ bytesIn, bytesOut }) => {
        place.open--;
        place.done++;
        place.bytesIn += bytesIn;
        place.bytesOut += bytesOut;
        handOut();
      });
      if (--starting === 0 && !isStopping)
        listen();
      handOut();
    });
    place.worker.on('error', (err) => console.error('A worker has failed:', err));
    place.worker.on('exit', () => {
      if (isStopping)
        return;
      if (place.isReady)
        return fill(place);
      // The next one would fail as well. What the others have begun comes to its end.
      process.exitCode = 1;
      stop();
    });
    return place;
  }

  const pool = Array.from({ length: Number(args.workers) }, () => fill({ done: 0, bytesIn: 0, bytesOut: 0 }));

  // To the Worker that has the fewest connections.
  function handOut() {
    while (waiting.length > 0) {
      const [place] = pool.filter(({ isReady, open }) => isReady && open < Number(args.connections))
        .sort((a, b) => a.open - b.open);
      if (place === undefined)
        return;
      const socket = waiting.shift();
      place.worker.postMessage(socket, [socket]);
      place.open++;
    }
  }

  // A socket can be handed over only as long as nothing was read from it.
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) => {
    waiting.push(socket);
    handOut();
  });
  // Those that wait: connections that were handed over do not count here.
  server.maxConnections = 1000;

  function listen() {
    server.listen(Number(args.port), args.host, () => {
      const { address, port } = /** @type {net.AddressInfo} */ (server.address());
      console.log(`listening on ${address}:${port}`);
    });
  }

  function print() {
    pool.forEach(({ open, done, bytesIn, bytesOut }, i) => {
      console.log(`worker ${i}: ${open} connections open, ${done} done, ${bytesIn} bytes in, ${bytesOut} bytes out`);
    });
  }

  function stop() {
    // The next signal, whichever of the two it is, ends the process.
    process.off('SIGTERM', stop).off('SIGINT', stop);
    isStopping = true;
    server.close();
    waiting.splice(0).forEach((socket) => socket.destroy());
    pool.forEach(({ worker }) => worker.postMessage('stop'));
    process.once('exit', print);
  }

  process.on('SIGUSR2', print);
  process.on('SIGTERM', stop);
  process.on('SIGINT', stop);
}

if (isMainThread)
  main();
else
  work(workerData);
