// A dependency that is installed by npm and runs in production.
module.exports = (env) => env.GREETING || 'nobody said how';
