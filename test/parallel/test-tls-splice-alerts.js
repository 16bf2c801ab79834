'use strict';

// Alerts and bad records behind data: see test/common/tls-splice-alerts.js.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { testAlerts } = require('../common/tls-splice-alerts');

testAlerts([['duplex']], [['in'], ['out']]);
