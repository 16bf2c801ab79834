'use strict';

// end() is called while there are records that have yet to be read: they are,
// and the end of the stream comes after them.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const fixtures = require('../common/fixtures');
const tls = require('tls');

const kSize = 8000;

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  const server = tls.createServer({
    key: fixtures.readKey('agent1-key.pem'),
    cert: fixtures.readKey('agent1-cert.pem'),
    minVersion: version,
    maxVersion: version,
    allowHalfOpen: true,
  }, common.mustCall((socket) => {
    // Many records, which arrive at once.
    socket.setMaxSendFragment(512);
    socket.write(Buffer.alloc(kSize));
    socket.resume();
    socket.on('end', common.mustCall(() => {
      socket.end('x');
      server.close();
    }));
  }));

  server.listen(0, common.mustCall(() => {
    let received = 0;
    const client = tls.connect({
      port: server.address().port,
      rejectUnauthorized: false,
      allowHalfOpen: true,
    });
    client.once('data', common.mustCall(() => client.end()));
    client.on('data', (chunk) => { received += chunk.length; });
    client.on('end', common.mustCall(() => {
      assert.strictEqual(received, kSize + 1);
    }));
  }));
}
