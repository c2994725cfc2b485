// A piano: every key is a struck string, whose partials are a little sharp and die away the sooner the higher they are.

const AHEAD = 2.5; // seconds of music handed to the browser in advance: pages in the background wake once a second
const RELEASE = 0.06; // seconds in which a damper takes a string to a third
const STIFFNESS = 4e-4;
const HIGHEST_PARTIAL = 12000; // Hz
const strings = new Map();

/** The sound of a key's string: an AudioBuffer, mono, until it has faded by 60 dB or for eight seconds. */
function stringOf(pitch, rate) {
  const name = `${pitch} ${rate}`;
  if (strings.has(name)) return strings.get(name);
  const fundamental = 440 * 2 ** ((pitch - 69) / 12), fade = 1 + fundamental / 600;
  const buffer = new AudioBuffer({ length: Math.ceil(Math.min(8, 6.9 / fade) * rate), sampleRate: rate });
  const samples = buffer.getChannelData(0);
  for (let k = 1; k <= 14; k++) {
    const frequency = k * fundamental * Math.sqrt(1 + STIFFNESS * k * k);
    if (k > 1 && frequency > HIGHEST_PARTIAL) break;
    // A decaying sine, each sample from the two before it.
    const angle = (2 * Math.PI * frequency) / rate, shrink = Math.exp(-(fade + 0.4 * (k - 1)) / rate);
    const once = 2 * shrink * Math.cos(angle), twice = shrink * shrink;
    let before = 0, now = k ** -1.1 * shrink * Math.sin(angle);
    for (let n = 1; n < samples.length; n++) {
      samples[n] += now;
      [before, now] = [now, once * now - twice * before];
    }
  }
  strings.set(name, buffer);
  return buffer;
}

/** Let a note [onset, offset, pitch, velocity] sound from `skip` seconds after its onset on; returns what sounds. */
function strike(context, output, [onset, offset, pitch, velocity], when, skip = 0) {
  const source = new AudioBufferSourceNode(context, { buffer: stringOf(pitch, context.sampleRate) });
  const hardness = velocity / 127, end = when + offset - onset - skip;
  const brightness = new BiquadFilterNode(context, { frequency: 900 + 9000 * hardness ** 1.5, Q: 0 });
  const loudness = new GainNode(context, { gain: 0.25 * hardness ** 1.7 });
  const place = new StereoPannerNode(context, { pan: Math.max(-0.8, Math.min(0.8, (pitch - 64) / 32)) });
  loudness.gain.setTargetAtTime(0, end, RELEASE);
  source.connect(brightness).connect(loudness).connect(place).connect(output);
  source.start(when, skip);
  source.stop(end + 8 * RELEASE);
  return source;
}

/** A small room around an output: a share of the sound comes back from all sides for a second. */
function room(context, output) {
  const length = Math.ceil(context.sampleRate), echo = new AudioBuffer({ length, numberOfChannels: 2, sampleRate: context.sampleRate });
  for (const channel of [0, 1]) {
    const samples = echo.getChannelData(channel);
    for (let n = 0; n < length; n++) samples[n] = (2 * Math.random() - 1) * Math.exp((-6.9 * n) / length);
  }
  const input = new GainNode(context), wet = new GainNode(context, { gain: 0.22 });
  input.connect(output);
  input.connect(new ConvolverNode(context, { buffer: echo })).connect(wet).connect(output);
  return input;
}

/** Plays notes, ordered by onset, from any moment on; `ended` is called at their end. */
class Piano {
  constructor(ended) {
    this.ended = ended;
    this.playing = false;
    this.load([], 0);
  }

  load(notes, seconds) {
    if (this.playing) this.stop();
    [this.notes, this.seconds, this.position] = [notes, seconds, 0];
  }

  /** The moment of the music that is heard now, in seconds. */
  get time() {
    if (!this.playing) return this.position;
    const heard = this.context.currentTime - (this.context.outputLatency || 0) - this.begun;
    return Math.min(Math.max(this.position, heard), this.seconds);
  }

  start() {
    if (!this.context) { // made now, since browsers want a click before there is sound
      this.context = new AudioContext();
      const limiter = new DynamicsCompressorNode(this.context);
      limiter.connect(this.context.destination);
      this.room = room(this.context, limiter);
    }
    this.context.resume();
    if (this.position >= this.seconds) this.position = 0;
    this.begun = this.context.currentTime + 0.1 - this.position;
    this.output = new GainNode(this.context);
    this.output.connect(this.room);
    [this.playing, this.next, this.sounding] = [true, 0, new Set()];
    this.timer = setInterval(() => this.prepare(), 250);
    this.prepare();
  }

  stop() {
    this.position = this.time;
    this.halt();
    const now = this.context.currentTime;
    this.output.gain.setTargetAtTime(0, now, 0.02); // a cut would click
    for (const source of this.sounding) source.stop(now + 0.2);
  }

  seek(seconds) {
    const playing = this.playing;
    if (playing) this.stop();
    this.position = Math.min(Math.max(0, seconds), this.seconds);
    if (playing) this.start();
  }

  /** Hand the notes of the next moments to the browser, which keeps time better than a page does. */
  prepare() {
    const until = this.context.currentTime - this.begun + AHEAD;
    for (; this.next < this.notes.length && this.notes[this.next][0] < until; this.next++) {
      const note = this.notes[this.next], skip = Math.max(0, this.position - note[0]);
      if (note[0] + skip >= note[1]) continue; // over before the moment that was begun with
      const source = strike(this.context, this.output, note, this.begun + note[0] + skip, skip);
      source.onended = () => this.sounding.delete(source);
      this.sounding.add(source);
    }
    if (this.time >= this.seconds) { // the last notes ring on
      this.position = this.seconds;
      this.halt();
      this.ended();
    }
  }

  halt() {
    clearInterval(this.timer);
    this.playing = false;
  }
}
