'use strict';

// A write to the TLS peer fails while a sink is full: see test/common/tls-splice-held-write.js.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { testHeldWrites } = require('../common/tls-splice-held-write');

testHeldWrites('descriptors', 'one descriptor');
