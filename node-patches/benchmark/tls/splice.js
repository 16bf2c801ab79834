'use strict';

// A TLS server that passes on what it gets ('in'), or sends what it is given
// ('out'), with a splice or with `pipe()`. Both peers are in this process, so
// that the ratio of the two is less than that of what they cost.

const common = require('../common.js');
const tls = require('tls');

const bench = common.createBenchmark(main, {
  dur: [5],
  pump: tls.TLSSplice === undefined ? ['pipe'] : ['splice', 'pipe'],
  direction: ['in', 'out'],
  size: [100, 1400, 16 * 1024, 256 * 1024],
}, {
  flags: ['--no-warnings'],
});

const fixtures = require('../../test/common/fixtures');
const net = require('net');

function main({ dur, pump, direction, size }) {
  const chunk = Buffer.alloc(size, 'b');
  let received = 0;

  function send(socket) {
    function write() {
      while (socket.write(chunk) !== false);
    }
    socket.on('drain', write);
    write();
  }

  function receive(socket) {
    socket.on('data', (data) => {
      received += data.length;
    });
  }

  // What is still under way at the end is cut off.
  function ignoreErrors(socket) {
    socket.on('error', () => {});
  }

  function onEndpoint(socket) {
    ignoreErrors(socket);
    bench.start();
    setTimeout(() => {
      bench.end((received * 8) / (1024 * 1024));
      process.exit(0);
    }, dur * 1000);
    if (direction === 'in')
      receive(socket);
    else
      send(socket);
  }

  function onSecureConnection(socket) {
    ignoreErrors(socket);
    const upstream = net.connect(endpoint.address().port, () => {
      if (pump === 'splice') {
        socket.pipeToNative(upstream).catch(() => {});
      } else {
        socket.pipe(upstream);
        upstream.pipe(socket);
      }
    });
    ignoreErrors(upstream);
  }

  const endpoint = net.createServer(onEndpoint);
  const server = tls.createServer({
    key: fixtures.readKey('rsa_private.pem'),
    cert: fixtures.readKey('rsa_cert.crt'),
  }, onSecureConnection);

  endpoint.listen(0, () => {
    server.listen(0, () => {
      const client = tls.connect({ port: server.address().port, rejectUnauthorized: false }, () => {
        if (direction === 'in')
          send(client);
        else
          receive(client);
      });
    });
  });
}
