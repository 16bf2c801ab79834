'use strict';

// Splices in optimized code: V8 calls functions of a binding in another way there, and then
// what they are called on matters.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { spawnSync } = require('child_process');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const test = require.resolve('./test-tls-splice-autoclose');
const { status, stderr } = spawnSync(process.execPath, ['--always-turbofan', test], { encoding: 'utf8' });
assert.strictEqual(status, 0, stderr);
