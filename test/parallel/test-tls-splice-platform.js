// Flags: --expose-internals
'use strict';

// Where there are no splices, as on Windows, spliceTo() says so, and the socket
// is as ever.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { internalBinding } = require('internal/test/binding');

const binding = internalBinding('tls_wrap');
if (binding.TLSSplice === undefined && !common.isWindows)
  common.skip('built without TLSSplice');
// The native part is missing there. It is looked for when tls is loaded.
assert(!process.moduleLoadList.includes('NativeModule internal/tls/splice'));
delete binding.TLSSplice;
delete binding.spliceConstants;

const fixtures = require('../common/fixtures');
const tls = require('tls');

const server = tls.createServer({
  key: fixtures.readKey('agent1-key.pem'),
  cert: fixtures.readKey('agent1-cert.pem'),
}, common.mustCall((socket) => {
  const expected = { code: 'ERR_FEATURE_UNAVAILABLE_ON_PLATFORM' };
  assert.throws(() => socket.spliceTo({ fd: 1 }), expected);
  assert.rejects(socket.pipeToNative(1), expected).then(common.mustCall(() => {
    socket.pipe(socket);
  }));
}));

server.listen(0, common.mustCall(() => {
  const client = tls.connect({ port: server.address().port, rejectUnauthorized: false });
  client.end('text');
  client.setEncoding('utf8').on('data', common.mustCall((text) => {
    assert.strictEqual(text, 'text');
  }));
  client.on('end', common.mustCall(() => server.close()));
}));
