/*! densitometer explorer, sources sha256 3d294729224cff3410d5796d5883648a537197b0879a119527bb3ac107055ca8 */
// src/reading.ts
function e(e, t) {
	let n = 0, r = e.grid.length - 1;
	for (; n < r;) {
		let i = n + r + 1 >> 1;
		e.grid[i] <= t ? n = i : r = i - 1;
	}
	return n;
}
function t(t, n) {
	let r = e(t, n), i = t.grid[Math.min(r + 1, t.grid.length - 1)];
	return Math.abs(Math.log(i / n)) < Math.abs(Math.log(t.grid[r] / n)) ? i : t.grid[r];
}
function n(t, n, r, i) {
	let a = t.curves[n], o = i ?? a.find((e) => e.n_edges === r), s = t.grid[e(t, r)] === r ? e(t, r) : -1, c = t.costs?.[n], l = {
		flops: o ? o.flops_share : c && s >= 0 ? c.flops[s] : null,
		parameters: o ? o.parameter_share : c && s >= 0 ? c.parameters[s] : null
	};
	if (o) return {
		exact: !0,
		tv: o.tv,
		kl: o.kl,
		entropy: o.entropy,
		nearest: o,
		...l
	};
	let u = null, d = null;
	for (let e of a) e.n_edges <= r ? u = e : d ||= e;
	if (!u || u.n_edges === 0) {
		let e = d ?? u;
		return {
			exact: !1,
			tv: e.tv,
			kl: e.kl,
			entropy: e.entropy,
			nearest: u ?? e,
			...l
		};
	}
	if (!d) return {
		exact: !1,
		tv: u.tv,
		kl: u.kl,
		entropy: u.entropy,
		nearest: u,
		...l
	};
	let f = Math.log(r / u.n_edges) / Math.log(d.n_edges / u.n_edges), p = (e, t) => e + f * (t - e);
	return {
		exact: !1,
		tv: p(u.tv, d.tv),
		kl: p(u.kl, d.kl),
		entropy: p(u.entropy, d.entropy),
		nearest: f < .5 ? u : d,
		...l
	};
}
function r(t, n, r) {
	let i = t.components.n_edges.length, a = e(t, r);
	return t.components.counts[n].subarray(a * i, (a + 1) * i);
}
// src/compare.ts
var i = /* @__PURE__ */ new WeakMap();
function a(e) {
	let t = i.get(e);
	if (!t) {
		t = /* @__PURE__ */ new Map();
		let n = e.edges, r = e.nTokens - 1;
		for (let i = 0; i < n.kept; i++) t.set(`${n.level[i]},${e.kinds[n.kind[i]]},${n.head[i]},${r - n.source[i]},${r - n.target[i]}`, i);
		i.set(e, t);
	}
	return t;
}
var o = /* @__PURE__ */ new WeakMap();
function s(e, t) {
	let n = o.get(e);
	n || o.set(e, n = /* @__PURE__ */ new WeakMap());
	let r = n.get(t);
	if (!r) {
		r = new Int32Array(e.edges.kept).fill(-1);
		let i = a(t);
		for (let [t, n] of a(e)) r[n] = i.get(t) ?? -1;
		n.set(t, r);
	}
	return r;
}
function c(e, t) {
	return JSON.stringify(e.levels) === JSON.stringify(t.levels);
}
function l(e, t, n, i, a, o) {
	let c = e.edges.orders[t], l = i.edges.orders[a], u = s(e, i), d = 0, f = 0;
	for (let e = 0; e < c.sorted.length && c.ranks[e] < n; e++) {
		d++;
		let t = u[c.sorted[e]];
		t >= 0 && l.rank[t] < o && f++;
	}
	let p = 0;
	for (; p < l.ranks.length && l.ranks[p] < o;) p++;
	let m = d + p - f, h = r(e, t, n), g = r(i, a, o), _ = 0, v = 0;
	for (let e = 0; e < h.length; e++) _ += Number(h[e] > 0 && g[e] > 0), v += Number(h[e] > 0 || g[e] > 0);
	return {
		first: d,
		second: p,
		shared: f,
		jaccard: m ? f / m : null,
		components: v ? _ / v : null,
		exact: d === n && p === o
	};
}
// node_modules/d3-array/dist/d3-array.mjs
function u(e, t) {
	return e == null || t == null ? NaN : e < t ? -1 : e > t ? 1 : e >= t ? 0 : NaN;
}
function d(e, t) {
	return e == null || t == null ? NaN : t < e ? -1 : t > e ? 1 : t >= e ? 0 : NaN;
}
function f(e) {
	let t, n, r;
	e.length === 2 ? (t = e === u || e === d ? e : p, n = e, r = e) : (t = u, n = (t, n) => u(e(t), n), r = (t, n) => e(t) - n);
	function i(e, r, i = 0, a = e.length) {
		if (i < a) {
			if (t(r, r) !== 0) return a;
			do {
				let t = i + a >>> 1;
				n(e[t], r) < 0 ? i = t + 1 : a = t;
			} while (i < a);
		}
		return i;
	}
	function a(e, r, i = 0, a = e.length) {
		if (i < a) {
			if (t(r, r) !== 0) return a;
			do {
				let t = i + a >>> 1;
				n(e[t], r) <= 0 ? i = t + 1 : a = t;
			} while (i < a);
		}
		return i;
	}
	function o(e, t, n = 0, a = e.length) {
		let o = i(e, t, n, a - 1);
		return o > n && r(e[o - 1], t) > -r(e[o], t) ? o - 1 : o;
	}
	return {
		left: i,
		center: o,
		right: a
	};
}
function p() {
	return 0;
}
function m(e) {
	return e === null ? NaN : +e;
}
var h = f(u), g = h.right;
h.left, f(m).center, Array.prototype.slice;
var _ = Math.sqrt(50), v = Math.sqrt(10), y = Math.sqrt(2);
function b(e, t, n) {
	let r = (t - e) / Math.max(0, n), i = Math.floor(Math.log10(r)), a = r / 10 ** i, o = a >= _ ? 10 : a >= v ? 5 : a >= y ? 2 : 1, s, c, l;
	return i < 0 ? (l = 10 ** -i / o, s = Math.round(e * l), c = Math.round(t * l), s / l < e && ++s, c / l > t && --c, l = -l) : (l = 10 ** i * o, s = Math.round(e / l), c = Math.round(t / l), s * l < e && ++s, c * l > t && --c), c < s && .5 <= n && n < 2 ? b(e, t, n * 2) : [
		s,
		c,
		l
	];
}
function x(e, t, n) {
	if (t = +t, e = +e, n = +n, !(n > 0)) return [];
	if (e === t) return [e];
	let r = t < e, [i, a, o] = r ? b(t, e, n) : b(e, t, n);
	if (!(a >= i)) return [];
	let s = a - i + 1, c = Array(s);
	if (r) {
		if (o < 0) for (let e = 0; e < s; ++e) c[e] = (a - e) / -o;
		else for (let e = 0; e < s; ++e) c[e] = (a - e) * o;
	} else if (o < 0) for (let e = 0; e < s; ++e) c[e] = (i + e) / -o;
	else for (let e = 0; e < s; ++e) c[e] = (i + e) * o;
	return c;
}
function S(e, t, n) {
	return t = +t, e = +e, n = +n, b(e, t, n)[2];
}
function ee(e, t, n) {
	t = +t, e = +e, n = +n;
	let r = t < e, i = r ? S(t, e, n) : S(e, t, n);
	return (r ? -1 : 1) * (i < 0 ? 1 / -i : i);
}
// node_modules/d3-color/dist/d3-color.mjs
function C(e, t, n) {
	e.prototype = t.prototype = n, n.constructor = e;
}
function w(e, t) {
	var n = Object.create(e.prototype);
	for (var r in t) n[r] = t[r];
	return n;
}
function T() {}
var E = .7, te = 1 / E, ne = "\\s*([+-]?\\d+)\\s*", re = "\\s*([+-]?(?:\\d*\\.)?\\d+(?:[eE][+-]?\\d+)?)\\s*", D = "\\s*([+-]?(?:\\d*\\.)?\\d+(?:[eE][+-]?\\d+)?)%\\s*", ie = /^#([0-9a-f]{3,8})$/, ae = RegExp(`^rgb\\(${ne},${ne},${ne}\\)$`), oe = RegExp(`^rgb\\(${D},${D},${D}\\)$`), se = RegExp(`^rgba\\(${ne},${ne},${ne},${re}\\)$`), ce = RegExp(`^rgba\\(${D},${D},${D},${re}\\)$`), le = RegExp(`^hsl\\(${re},${D},${D}\\)$`), ue = RegExp(`^hsla\\(${re},${D},${D},${re}\\)$`), de = {
	aliceblue: 15792383,
	antiquewhite: 16444375,
	aqua: 65535,
	aquamarine: 8388564,
	azure: 15794175,
	beige: 16119260,
	bisque: 16770244,
	black: 0,
	blanchedalmond: 16772045,
	blue: 255,
	blueviolet: 9055202,
	brown: 10824234,
	burlywood: 14596231,
	cadetblue: 6266528,
	chartreuse: 8388352,
	chocolate: 13789470,
	coral: 16744272,
	cornflowerblue: 6591981,
	cornsilk: 16775388,
	crimson: 14423100,
	cyan: 65535,
	darkblue: 139,
	darkcyan: 35723,
	darkgoldenrod: 12092939,
	darkgray: 11119017,
	darkgreen: 25600,
	darkgrey: 11119017,
	darkkhaki: 12433259,
	darkmagenta: 9109643,
	darkolivegreen: 5597999,
	darkorange: 16747520,
	darkorchid: 10040012,
	darkred: 9109504,
	darksalmon: 15308410,
	darkseagreen: 9419919,
	darkslateblue: 4734347,
	darkslategray: 3100495,
	darkslategrey: 3100495,
	darkturquoise: 52945,
	darkviolet: 9699539,
	deeppink: 16716947,
	deepskyblue: 49151,
	dimgray: 6908265,
	dimgrey: 6908265,
	dodgerblue: 2003199,
	firebrick: 11674146,
	floralwhite: 16775920,
	forestgreen: 2263842,
	fuchsia: 16711935,
	gainsboro: 14474460,
	ghostwhite: 16316671,
	gold: 16766720,
	goldenrod: 14329120,
	gray: 8421504,
	green: 32768,
	greenyellow: 11403055,
	grey: 8421504,
	honeydew: 15794160,
	hotpink: 16738740,
	indianred: 13458524,
	indigo: 4915330,
	ivory: 16777200,
	khaki: 15787660,
	lavender: 15132410,
	lavenderblush: 16773365,
	lawngreen: 8190976,
	lemonchiffon: 16775885,
	lightblue: 11393254,
	lightcoral: 15761536,
	lightcyan: 14745599,
	lightgoldenrodyellow: 16448210,
	lightgray: 13882323,
	lightgreen: 9498256,
	lightgrey: 13882323,
	lightpink: 16758465,
	lightsalmon: 16752762,
	lightseagreen: 2142890,
	lightskyblue: 8900346,
	lightslategray: 7833753,
	lightslategrey: 7833753,
	lightsteelblue: 11584734,
	lightyellow: 16777184,
	lime: 65280,
	limegreen: 3329330,
	linen: 16445670,
	magenta: 16711935,
	maroon: 8388608,
	mediumaquamarine: 6737322,
	mediumblue: 205,
	mediumorchid: 12211667,
	mediumpurple: 9662683,
	mediumseagreen: 3978097,
	mediumslateblue: 8087790,
	mediumspringgreen: 64154,
	mediumturquoise: 4772300,
	mediumvioletred: 13047173,
	midnightblue: 1644912,
	mintcream: 16121850,
	mistyrose: 16770273,
	moccasin: 16770229,
	navajowhite: 16768685,
	navy: 128,
	oldlace: 16643558,
	olive: 8421376,
	olivedrab: 7048739,
	orange: 16753920,
	orangered: 16729344,
	orchid: 14315734,
	palegoldenrod: 15657130,
	palegreen: 10025880,
	paleturquoise: 11529966,
	palevioletred: 14381203,
	papayawhip: 16773077,
	peachpuff: 16767673,
	peru: 13468991,
	pink: 16761035,
	plum: 14524637,
	powderblue: 11591910,
	purple: 8388736,
	rebeccapurple: 6697881,
	red: 16711680,
	rosybrown: 12357519,
	royalblue: 4286945,
	saddlebrown: 9127187,
	salmon: 16416882,
	sandybrown: 16032864,
	seagreen: 3050327,
	seashell: 16774638,
	sienna: 10506797,
	silver: 12632256,
	skyblue: 8900331,
	slateblue: 6970061,
	slategray: 7372944,
	slategrey: 7372944,
	snow: 16775930,
	springgreen: 65407,
	steelblue: 4620980,
	tan: 13808780,
	teal: 32896,
	thistle: 14204888,
	tomato: 16737095,
	turquoise: 4251856,
	violet: 15631086,
	wheat: 16113331,
	white: 16777215,
	whitesmoke: 16119285,
	yellow: 16776960,
	yellowgreen: 10145074
};
C(T, ge, {
	copy(e) {
		return Object.assign(new this.constructor(), this, e);
	},
	displayable() {
		return this.rgb().displayable();
	},
	hex: fe,
	formatHex: fe,
	formatHex8: pe,
	formatHsl: me,
	formatRgb: he,
	toString: he
});
function fe() {
	return this.rgb().formatHex();
}
function pe() {
	return this.rgb().formatHex8();
}
function me() {
	return Oe(this).formatHsl();
}
function he() {
	return this.rgb().formatRgb();
}
function ge(e) {
	var t, n;
	return e = (e + "").trim().toLowerCase(), (t = ie.exec(e)) ? (n = t[1].length, t = parseInt(t[1], 16), n === 6 ? _e(t) : n === 3 ? new O(t >> 8 & 15 | t >> 4 & 240, t >> 4 & 15 | t & 240, (t & 15) << 4 | t & 15, 1) : n === 8 ? ve(t >> 24 & 255, t >> 16 & 255, t >> 8 & 255, (t & 255) / 255) : n === 4 ? ve(t >> 12 & 15 | t >> 8 & 240, t >> 8 & 15 | t >> 4 & 240, t >> 4 & 15 | t & 240, ((t & 15) << 4 | t & 15) / 255) : null) : (t = ae.exec(e)) ? new O(t[1], t[2], t[3], 1) : (t = oe.exec(e)) ? new O(t[1] * 255 / 100, t[2] * 255 / 100, t[3] * 255 / 100, 1) : (t = se.exec(e)) ? ve(t[1], t[2], t[3], t[4]) : (t = ce.exec(e)) ? ve(t[1] * 255 / 100, t[2] * 255 / 100, t[3] * 255 / 100, t[4]) : (t = le.exec(e)) ? De(t[1], t[2] / 100, t[3] / 100, 1) : (t = ue.exec(e)) ? De(t[1], t[2] / 100, t[3] / 100, t[4]) : de.hasOwnProperty(e) ? _e(de[e]) : e === "transparent" ? new O(NaN, NaN, NaN, 0) : null;
}
function _e(e) {
	return new O(e >> 16 & 255, e >> 8 & 255, e & 255, 1);
}
function ve(e, t, n, r) {
	return r <= 0 && (e = t = n = NaN), new O(e, t, n, r);
}
function ye(e) {
	return e instanceof T || (e = ge(e)), e ? (e = e.rgb(), new O(e.r, e.g, e.b, e.opacity)) : new O();
}
function be(e, t, n, r) {
	return arguments.length === 1 ? ye(e) : new O(e, t, n, r ?? 1);
}
function O(e, t, n, r) {
	this.r = +e, this.g = +t, this.b = +n, this.opacity = +r;
}
C(O, be, w(T, {
	brighter(e) {
		return e = e == null ? te : te ** +e, new O(this.r * e, this.g * e, this.b * e, this.opacity);
	},
	darker(e) {
		return e = e == null ? E : E ** +e, new O(this.r * e, this.g * e, this.b * e, this.opacity);
	},
	rgb() {
		return this;
	},
	clamp() {
		return new O(Te(this.r), Te(this.g), Te(this.b), we(this.opacity));
	},
	displayable() {
		return -.5 <= this.r && this.r < 255.5 && -.5 <= this.g && this.g < 255.5 && -.5 <= this.b && this.b < 255.5 && 0 <= this.opacity && this.opacity <= 1;
	},
	hex: xe,
	formatHex: xe,
	formatHex8: Se,
	formatRgb: Ce,
	toString: Ce
}));
function xe() {
	return `#${Ee(this.r)}${Ee(this.g)}${Ee(this.b)}`;
}
function Se() {
	return `#${Ee(this.r)}${Ee(this.g)}${Ee(this.b)}${Ee((isNaN(this.opacity) ? 1 : this.opacity) * 255)}`;
}
function Ce() {
	let e = we(this.opacity);
	return `${e === 1 ? "rgb(" : "rgba("}${Te(this.r)}, ${Te(this.g)}, ${Te(this.b)}${e === 1 ? ")" : `, ${e})`}`;
}
function we(e) {
	return isNaN(e) ? 1 : Math.max(0, Math.min(1, e));
}
function Te(e) {
	return Math.max(0, Math.min(255, Math.round(e) || 0));
}
function Ee(e) {
	return e = Te(e), (e < 16 ? "0" : "") + e.toString(16);
}
function De(e, t, n, r) {
	return r <= 0 ? e = t = n = NaN : n <= 0 || n >= 1 ? e = t = NaN : t <= 0 && (e = NaN), new k(e, t, n, r);
}
function Oe(e) {
	if (e instanceof k) return new k(e.h, e.s, e.l, e.opacity);
	if (e instanceof T || (e = ge(e)), !e) return new k();
	if (e instanceof k) return e;
	e = e.rgb();
	var t = e.r / 255, n = e.g / 255, r = e.b / 255, i = Math.min(t, n, r), a = Math.max(t, n, r), o = NaN, s = a - i, c = (a + i) / 2;
	return s ? (o = t === a ? (n - r) / s + (n < r) * 6 : n === a ? (r - t) / s + 2 : (t - n) / s + 4, s /= c < .5 ? a + i : 2 - a - i, o *= 60) : s = c > 0 && c < 1 ? 0 : o, new k(o, s, c, e.opacity);
}
function ke(e, t, n, r) {
	return arguments.length === 1 ? Oe(e) : new k(e, t, n, r ?? 1);
}
function k(e, t, n, r) {
	this.h = +e, this.s = +t, this.l = +n, this.opacity = +r;
}
C(k, ke, w(T, {
	brighter(e) {
		return e = e == null ? te : te ** +e, new k(this.h, this.s, this.l * e, this.opacity);
	},
	darker(e) {
		return e = e == null ? E : E ** +e, new k(this.h, this.s, this.l * e, this.opacity);
	},
	rgb() {
		var e = this.h % 360 + (this.h < 0) * 360, t = isNaN(e) || isNaN(this.s) ? 0 : this.s, n = this.l, r = n + (n < .5 ? n : 1 - n) * t, i = 2 * n - r;
		return new O(Me(e >= 240 ? e - 240 : e + 120, i, r), Me(e, i, r), Me(e < 120 ? e + 240 : e - 120, i, r), this.opacity);
	},
	clamp() {
		return new k(Ae(this.h), je(this.s), je(this.l), we(this.opacity));
	},
	displayable() {
		return (0 <= this.s && this.s <= 1 || isNaN(this.s)) && 0 <= this.l && this.l <= 1 && 0 <= this.opacity && this.opacity <= 1;
	},
	formatHsl() {
		let e = we(this.opacity);
		return `${e === 1 ? "hsl(" : "hsla("}${Ae(this.h)}, ${je(this.s) * 100}%, ${je(this.l) * 100}%${e === 1 ? ")" : `, ${e})`}`;
	}
}));
function Ae(e) {
	return e = (e || 0) % 360, e < 0 ? e + 360 : e;
}
function je(e) {
	return Math.max(0, Math.min(1, e || 0));
}
function Me(e, t, n) {
	return (e < 60 ? t + (n - t) * e / 60 : e < 180 ? n : e < 240 ? t + (n - t) * (240 - e) / 60 : t) * 255;
}
var Ne = Math.PI / 180, Pe = 180 / Math.PI, Fe = 18, Ie = .96422, Le = 1, Re = .82521, ze = 4 / 29, Be = 6 / 29, Ve = 3 * Be * Be, He = Be * Be * Be;
function Ue(e) {
	if (e instanceof A) return new A(e.l, e.a, e.b, e.opacity);
	if (e instanceof j) return Ze(e);
	e instanceof O || (e = ye(e));
	var t = Je(e.r), n = Je(e.g), r = Je(e.b), i = Ge((.2225045 * t + .7168786 * n + .0606169 * r) / Le), a, o;
	return t === n && n === r ? a = o = i : (a = Ge((.4360747 * t + .3850649 * n + .1430804 * r) / Ie), o = Ge((.0139322 * t + .0971045 * n + .7141733 * r) / Re)), new A(116 * i - 16, 500 * (a - i), 200 * (i - o), e.opacity);
}
function We(e, t, n, r) {
	return arguments.length === 1 ? Ue(e) : new A(e, t, n, r ?? 1);
}
function A(e, t, n, r) {
	this.l = +e, this.a = +t, this.b = +n, this.opacity = +r;
}
C(A, We, w(T, {
	brighter(e) {
		return new A(this.l + Fe * (e ?? 1), this.a, this.b, this.opacity);
	},
	darker(e) {
		return new A(this.l - Fe * (e ?? 1), this.a, this.b, this.opacity);
	},
	rgb() {
		var e = (this.l + 16) / 116, t = isNaN(this.a) ? e : e + this.a / 500, n = isNaN(this.b) ? e : e - this.b / 200;
		return t = Ie * Ke(t), e = Le * Ke(e), n = Re * Ke(n), new O(qe(3.1338561 * t - 1.6168667 * e - .4906146 * n), qe(-.9787684 * t + 1.9161415 * e + .033454 * n), qe(.0719453 * t - .2289914 * e + 1.4052427 * n), this.opacity);
	}
}));
function Ge(e) {
	return e > He ? e ** (1 / 3) : e / Ve + ze;
}
function Ke(e) {
	return e > Be ? e * e * e : Ve * (e - ze);
}
function qe(e) {
	return 255 * (e <= .0031308 ? 12.92 * e : 1.055 * e ** (1 / 2.4) - .055);
}
function Je(e) {
	return (e /= 255) <= .04045 ? e / 12.92 : ((e + .055) / 1.055) ** 2.4;
}
function Ye(e) {
	if (e instanceof j) return new j(e.h, e.c, e.l, e.opacity);
	if (e instanceof A || (e = Ue(e)), e.a === 0 && e.b === 0) return new j(NaN, 0 < e.l && e.l < 100 ? 0 : NaN, e.l, e.opacity);
	var t = Math.atan2(e.b, e.a) * Pe;
	return new j(t < 0 ? t + 360 : t, Math.sqrt(e.a * e.a + e.b * e.b), e.l, e.opacity);
}
function Xe(e, t, n, r) {
	return arguments.length === 1 ? Ye(e) : new j(e, t, n, r ?? 1);
}
function j(e, t, n, r) {
	this.h = +e, this.c = +t, this.l = +n, this.opacity = +r;
}
function Ze(e) {
	if (isNaN(e.h)) return new A(e.l, 0, 0, e.opacity);
	var t = e.h * Ne;
	return new A(e.l, Math.cos(t) * e.c, Math.sin(t) * e.c, e.opacity);
}
C(j, Xe, w(T, {
	brighter(e) {
		return new j(this.h, this.c, this.l + Fe * (e ?? 1), this.opacity);
	},
	darker(e) {
		return new j(this.h, this.c, this.l - Fe * (e ?? 1), this.opacity);
	},
	rgb() {
		return Ze(this).rgb();
	}
}));
var Qe = -.14861, $e = 1.78277, et = -.29227, tt = -.90649, nt = 1.97294, rt = nt * tt, it = nt * $e, at = $e * et - tt * Qe;
function ot(e) {
	if (e instanceof st) return new st(e.h, e.s, e.l, e.opacity);
	e instanceof O || (e = ye(e));
	var t = e.r / 255, n = e.g / 255, r = e.b / 255, i = (at * r + rt * t - it * n) / (at + rt - it), a = r - i, o = (nt * (n - i) - et * a) / tt, s = Math.sqrt(o * o + a * a) / (nt * i * (1 - i)), c = s ? Math.atan2(o, a) * Pe - 120 : NaN;
	return new st(c < 0 ? c + 360 : c, s, i, e.opacity);
}
function M(e, t, n, r) {
	return arguments.length === 1 ? ot(e) : new st(e, t, n, r ?? 1);
}
function st(e, t, n, r) {
	this.h = +e, this.s = +t, this.l = +n, this.opacity = +r;
}
C(st, M, w(T, {
	brighter(e) {
		return e = e == null ? te : te ** +e, new st(this.h, this.s, this.l * e, this.opacity);
	},
	darker(e) {
		return e = e == null ? E : E ** +e, new st(this.h, this.s, this.l * e, this.opacity);
	},
	rgb() {
		var e = isNaN(this.h) ? 0 : (this.h + 120) * Ne, t = +this.l, n = isNaN(this.s) ? 0 : this.s * t * (1 - t), r = Math.cos(e), i = Math.sin(e);
		return new O(255 * (t + n * (Qe * r + $e * i)), 255 * (t + n * (et * r + tt * i)), 255 * (t + nt * r * n), this.opacity);
	}
}));
// node_modules/d3-interpolate/dist/d3-interpolate.mjs
function ct(e, t, n, r, i) {
	var a = e * e, o = a * e;
	return ((1 - 3 * e + 3 * a - o) * t + (4 - 6 * a + 3 * o) * n + (1 + 3 * e + 3 * a - 3 * o) * r + o * i) / 6;
}
function lt(e) {
	var t = e.length - 1;
	return function(n) {
		var r = n <= 0 ? n = 0 : n >= 1 ? (n = 1, t - 1) : Math.floor(n * t), i = e[r], a = e[r + 1], o = r > 0 ? e[r - 1] : 2 * i - a, s = r < t - 1 ? e[r + 2] : 2 * a - i;
		return ct((n - r / t) * t, o, i, a, s);
	};
}
var ut = (e) => () => e;
function dt(e, t) {
	return function(n) {
		return e + n * t;
	};
}
function ft(e, t, n) {
	return e **= +n, t = t ** +n - e, n = 1 / n, function(r) {
		return (e + r * t) ** +n;
	};
}
function pt(e, t) {
	var n = t - e;
	return n ? dt(e, n > 180 || n < -180 ? n - 360 * Math.round(n / 360) : n) : ut(isNaN(e) ? t : e);
}
function mt(e) {
	return (e = +e) == 1 ? ht : function(t, n) {
		return n - t ? ft(t, n, e) : ut(isNaN(t) ? n : t);
	};
}
function ht(e, t) {
	var n = t - e;
	return n ? dt(e, n) : ut(isNaN(e) ? t : e);
}
var gt = (function e(t) {
	var n = mt(t);
	function r(e, t) {
		var r = n((e = be(e)).r, (t = be(t)).r), i = n(e.g, t.g), a = n(e.b, t.b), o = ht(e.opacity, t.opacity);
		return function(t) {
			return e.r = r(t), e.g = i(t), e.b = a(t), e.opacity = o(t), e + "";
		};
	}
	return r.gamma = e, r;
})(1);
function _t(e) {
	return function(t) {
		for (var n = t.length, r = Array(n), i = Array(n), a = Array(n), o = 0, s; o < n; ++o) s = be(t[o]), r[o] = s.r || 0, i[o] = s.g || 0, a[o] = s.b || 0;
		return r = e(r), i = e(i), a = e(a), s.opacity = 1, function(e) {
			return s.r = r(e), s.g = i(e), s.b = a(e), s + "";
		};
	};
}
var vt = _t(lt);
function yt(e, t) {
	t ||= [];
	var n = e ? Math.min(t.length, e.length) : 0, r = t.slice(), i;
	return function(a) {
		for (i = 0; i < n; ++i) r[i] = e[i] * (1 - a) + t[i] * a;
		return r;
	};
}
function bt(e) {
	return ArrayBuffer.isView(e) && !(e instanceof DataView);
}
function xt(e, t) {
	for (var n = t ? t.length : 0, r = e ? Math.min(n, e.length) : 0, i = Array(r), a = Array(n), o = 0; o < r; ++o) i[o] = kt(e[o], t[o]);
	for (; o < n; ++o) a[o] = t[o];
	return function(e) {
		for (o = 0; o < r; ++o) a[o] = i[o](e);
		return a;
	};
}
function St(e, t) {
	var n = /* @__PURE__ */ new Date();
	return e = +e, t = +t, function(r) {
		return n.setTime(e * (1 - r) + t * r), n;
	};
}
function N(e, t) {
	return e = +e, t = +t, function(n) {
		return e * (1 - n) + t * n;
	};
}
function Ct(e, t) {
	var n = {}, r = {}, i;
	for (i in typeof e == "object" && e || (e = {}), typeof t == "object" && t || (t = {}), t) i in e ? n[i] = kt(e[i], t[i]) : r[i] = t[i];
	return function(e) {
		for (i in n) r[i] = n[i](e);
		return r;
	};
}
var wt = /[-+]?(?:\d+\.?\d*|\.?\d+)(?:[eE][-+]?\d+)?/g, Tt = new RegExp(wt.source, "g");
function Et(e) {
	return function() {
		return e;
	};
}
function Dt(e) {
	return function(t) {
		return e(t) + "";
	};
}
function Ot(e, t) {
	var n = wt.lastIndex = Tt.lastIndex = 0, r, i, a, o = -1, s = [], c = [];
	for (e += "", t += ""; (r = wt.exec(e)) && (i = Tt.exec(t));) (a = i.index) > n && (a = t.slice(n, a), s[o] ? s[o] += a : s[++o] = a), (r = r[0]) === (i = i[0]) ? s[o] ? s[o] += i : s[++o] = i : (s[++o] = null, c.push({
		i: o,
		x: N(r, i)
	})), n = Tt.lastIndex;
	return n < t.length && (a = t.slice(n), s[o] ? s[o] += a : s[++o] = a), s.length < 2 ? c[0] ? Dt(c[0].x) : Et(t) : (t = c.length, function(e) {
		for (var n = 0, r; n < t; ++n) s[(r = c[n]).i] = r.x(e);
		return s.join("");
	});
}
function kt(e, t) {
	var n = typeof t, r;
	return t == null || n === "boolean" ? ut(t) : (n === "number" ? N : n === "string" ? (r = ge(t)) ? (t = r, gt) : Ot : t instanceof ge ? gt : t instanceof Date ? St : bt(t) ? yt : Array.isArray(t) ? xt : typeof t.valueOf != "function" && typeof t.toString != "function" || isNaN(t) ? Ct : N)(e, t);
}
function At(e, t) {
	return e = +e, t = +t, function(n) {
		return Math.round(e * (1 - n) + t * n);
	};
}
var jt = 180 / Math.PI, Mt = {
	translateX: 0,
	translateY: 0,
	rotate: 0,
	skewX: 0,
	scaleX: 1,
	scaleY: 1
};
function Nt(e, t, n, r, i, a) {
	var o, s, c;
	return (o = Math.sqrt(e * e + t * t)) && (e /= o, t /= o), (c = e * n + t * r) && (n -= e * c, r -= t * c), (s = Math.sqrt(n * n + r * r)) && (n /= s, r /= s, c /= s), e * r < t * n && (e = -e, t = -t, c = -c, o = -o), {
		translateX: i,
		translateY: a,
		rotate: Math.atan2(t, e) * jt,
		skewX: Math.atan(c) * jt,
		scaleX: o,
		scaleY: s
	};
}
var Pt;
function Ft(e) {
	let t = new (typeof DOMMatrix == "function" ? DOMMatrix : WebKitCSSMatrix)(e + "");
	return t.isIdentity ? Mt : Nt(t.a, t.b, t.c, t.d, t.e, t.f);
}
function It(e) {
	return e == null || (Pt ||= document.createElementNS("http://www.w3.org/2000/svg", "g"), Pt.setAttribute("transform", e), !(e = Pt.transform.baseVal.consolidate())) ? Mt : (e = e.matrix, Nt(e.a, e.b, e.c, e.d, e.e, e.f));
}
function Lt(e, t, n, r) {
	function i(e) {
		return e.length ? e.pop() + " " : "";
	}
	function a(e, r, i, a, o, s) {
		if (e !== i || r !== a) {
			var c = o.push("translate(", null, t, null, n);
			s.push({
				i: c - 4,
				x: N(e, i)
			}, {
				i: c - 2,
				x: N(r, a)
			});
		} else (i || a) && o.push("translate(" + i + t + a + n);
	}
	function o(e, t, n, a) {
		e === t ? t && n.push(i(n) + "rotate(" + t + r) : (e - t > 180 ? t += 360 : t - e > 180 && (e += 360), a.push({
			i: n.push(i(n) + "rotate(", null, r) - 2,
			x: N(e, t)
		}));
	}
	function s(e, t, n, a) {
		e === t ? t && n.push(i(n) + "skewX(" + t + r) : a.push({
			i: n.push(i(n) + "skewX(", null, r) - 2,
			x: N(e, t)
		});
	}
	function c(e, t, n, r, a, o) {
		if (e !== n || t !== r) {
			var s = a.push(i(a) + "scale(", null, ",", null, ")");
			o.push({
				i: s - 4,
				x: N(e, n)
			}, {
				i: s - 2,
				x: N(t, r)
			});
		} else (n !== 1 || r !== 1) && a.push(i(a) + "scale(" + n + "," + r + ")");
	}
	return function(t, n) {
		var r = [], i = [];
		return t = e(t), n = e(n), a(t.translateX, t.translateY, n.translateX, n.translateY, r, i), o(t.rotate, n.rotate, r, i), s(t.skewX, n.skewX, r, i), c(t.scaleX, t.scaleY, n.scaleX, n.scaleY, r, i), t = n = null, function(e) {
			for (var t = -1, n = i.length, a; ++t < n;) r[(a = i[t]).i] = a.x(e);
			return r.join("");
		};
	};
}
var Rt = Lt(Ft, "px, ", "px)", "deg)"), zt = Lt(It, ", ", ")", ")"), Bt = 1e-12;
function Vt(e) {
	return ((e = Math.exp(e)) + 1 / e) / 2;
}
function Ht(e) {
	return ((e = Math.exp(e)) - 1 / e) / 2;
}
function Ut(e) {
	return ((e = Math.exp(2 * e)) - 1) / (e + 1);
}
var Wt = (function e(t, n, r) {
	function i(e, i) {
		var a = e[0], o = e[1], s = e[2], c = i[0], l = i[1], u = i[2], d = c - a, f = l - o, p = d * d + f * f, m, h;
		if (p < Bt) h = Math.log(u / s) / t, m = function(e) {
			return [
				a + e * d,
				o + e * f,
				s * Math.exp(t * e * h)
			];
		};
		else {
			var g = Math.sqrt(p), _ = (u * u - s * s + r * p) / (2 * s * n * g), v = (u * u - s * s - r * p) / (2 * u * n * g), y = Math.log(Math.sqrt(_ * _ + 1) - _);
			h = (Math.log(Math.sqrt(v * v + 1) - v) - y) / t, m = function(e) {
				var r = e * h, i = Vt(y), c = s / (n * g) * (i * Ut(t * r + y) - Ht(y));
				return [
					a + c * d,
					o + c * f,
					s * i / Vt(t * r + y)
				];
			};
		}
		return m.duration = Math.abs(h) * 1e3 * t / Math.SQRT2, m;
	}
	return i.rho = function(t) {
		var n = Math.max(.001, +t), r = n * n;
		return e(n, r, r * r);
	}, i;
})(Math.SQRT2, 2, 4);
function Gt(e) {
	return (function t(n) {
		n = +n;
		function r(t, r) {
			var i = e((t = M(t)).h, (r = M(r)).h), a = ht(t.s, r.s), o = ht(t.l, r.l), s = ht(t.opacity, r.opacity);
			return function(e) {
				return t.h = i(e), t.s = a(e), t.l = o(e ** +n), t.opacity = s(e), t + "";
			};
		}
		return r.gamma = t, r;
	})(1);
}
Gt(pt);
var Kt = Gt(ht);
// node_modules/d3-format/dist/d3-format.mjs
function qt(e) {
	return Math.abs(e = Math.round(e)) >= 1e21 ? e.toLocaleString("en").replace(/,/g, "") : e.toString(10);
}
function Jt(e, t) {
	if (!isFinite(e) || e === 0) return null;
	var n = (e = t ? e.toExponential(t - 1) : e.toExponential()).indexOf("e"), r = e.slice(0, n);
	return [r.length > 1 ? r[0] + r.slice(2) : r, +e.slice(n + 1)];
}
function Yt(e) {
	return e = Jt(Math.abs(e)), e ? e[1] : NaN;
}
function Xt(e, t) {
	return function(n, r) {
		for (var i = n.length, a = [], o = 0, s = e[0], c = 0; i > 0 && s > 0 && (c + s + 1 > r && (s = Math.max(1, r - c)), a.push(n.substring(i -= s, i + s)), !((c += s + 1) > r));) s = e[o = (o + 1) % e.length];
		return a.reverse().join(t);
	};
}
function Zt(e) {
	return function(t) {
		return t.replace(/[0-9]/g, function(t) {
			return e[+t];
		});
	};
}
var Qt = /^(?:(.)?([<>=^]))?([+\-( ])?([$#])?(0)?(\d+)?(,)?(\.\d+)?(~)?([a-z%])?$/i;
function $t(e) {
	if (!(t = Qt.exec(e))) throw Error("invalid format: " + e);
	var t;
	return new en({
		fill: t[1],
		align: t[2],
		sign: t[3],
		symbol: t[4],
		zero: t[5],
		width: t[6],
		comma: t[7],
		precision: t[8] && t[8].slice(1),
		trim: t[9],
		type: t[10]
	});
}
$t.prototype = en.prototype;
function en(e) {
	this.fill = e.fill === void 0 ? " " : e.fill + "", this.align = e.align === void 0 ? ">" : e.align + "", this.sign = e.sign === void 0 ? "-" : e.sign + "", this.symbol = e.symbol === void 0 ? "" : e.symbol + "", this.zero = !!e.zero, this.width = e.width === void 0 ? void 0 : +e.width, this.comma = !!e.comma, this.precision = e.precision === void 0 ? void 0 : +e.precision, this.trim = !!e.trim, this.type = e.type === void 0 ? "" : e.type + "";
}
en.prototype.toString = function() {
	return this.fill + this.align + this.sign + this.symbol + (this.zero ? "0" : "") + (this.width === void 0 ? "" : Math.max(1, this.width | 0)) + (this.comma ? "," : "") + (this.precision === void 0 ? "" : "." + Math.max(0, this.precision | 0)) + (this.trim ? "~" : "") + this.type;
};
function tn(e) {
	out: for (var t = e.length, n = 1, r = -1, i; n < t; ++n) switch (e[n]) {
		case ".":
			r = i = n;
			break;
		case "0":
			r === 0 && (r = n), i = n;
			break;
		default:
			if (!+e[n]) break out;
			r > 0 && (r = 0);
	}
	return r > 0 ? e.slice(0, r) + e.slice(i + 1) : e;
}
var nn;
function rn(e, t) {
	var n = Jt(e, t);
	if (!n) return nn = void 0, e.toPrecision(t);
	var r = n[0], i = n[1], a = i - (nn = Math.max(-8, Math.min(8, Math.floor(i / 3))) * 3) + 1, o = r.length;
	return a === o ? r : a > o ? r + Array(a - o + 1).join("0") : a > 0 ? r.slice(0, a) + "." + r.slice(a) : "0." + Array(1 - a).join("0") + Jt(e, Math.max(0, t + a - 1))[0];
}
function an(e, t) {
	var n = Jt(e, t);
	if (!n) return e + "";
	var r = n[0], i = n[1];
	return i < 0 ? "0." + Array(-i).join("0") + r : r.length > i + 1 ? r.slice(0, i + 1) + "." + r.slice(i + 1) : r + Array(i - r.length + 2).join("0");
}
var on = {
	"%": (e, t) => (e * 100).toFixed(t),
	b: (e) => Math.round(e).toString(2),
	c: (e) => e + "",
	d: qt,
	e: (e, t) => e.toExponential(t),
	f: (e, t) => e.toFixed(t),
	g: (e, t) => e.toPrecision(t),
	o: (e) => Math.round(e).toString(8),
	p: (e, t) => an(e * 100, t),
	r: an,
	s: rn,
	X: (e) => Math.round(e).toString(16).toUpperCase(),
	x: (e) => Math.round(e).toString(16)
};
function sn(e) {
	return e;
}
var cn = Array.prototype.map, ln = [
	"y",
	"z",
	"a",
	"f",
	"p",
	"n",
	"µ",
	"m",
	"",
	"k",
	"M",
	"G",
	"T",
	"P",
	"E",
	"Z",
	"Y"
];
function un(e) {
	var t = e.grouping === void 0 || e.thousands === void 0 ? sn : Xt(cn.call(e.grouping, Number), e.thousands + ""), n = e.currency === void 0 ? "" : e.currency[0] + "", r = e.currency === void 0 ? "" : e.currency[1] + "", i = e.decimal === void 0 ? "." : e.decimal + "", a = e.numerals === void 0 ? sn : Zt(cn.call(e.numerals, String)), o = e.percent === void 0 ? "%" : e.percent + "", s = e.minus === void 0 ? "−" : e.minus + "", c = e.nan === void 0 ? "NaN" : e.nan + "";
	function l(e, l) {
		e = $t(e);
		var u = e.fill, d = e.align, f = e.sign, p = e.symbol, m = e.zero, h = e.width, g = e.comma, _ = e.precision, v = e.trim, y = e.type;
		y === "n" ? (g = !0, y = "g") : on[y] || (_ === void 0 && (_ = 12), v = !0, y = "g"), (m || u === "0" && d === "=") && (m = !0, u = "0", d = "=");
		var b = (l && l.prefix !== void 0 ? l.prefix : "") + (p === "$" ? n : p === "#" && /[boxX]/.test(y) ? "0" + y.toLowerCase() : ""), x = (p === "$" ? r : /[%p]/.test(y) ? o : "") + (l && l.suffix !== void 0 ? l.suffix : ""), S = on[y], ee = /[defgprs%]/.test(y);
		_ = _ === void 0 ? 6 : /[gprs]/.test(y) ? Math.max(1, Math.min(21, _)) : Math.max(0, Math.min(20, _));
		function C(e) {
			var n = b, r = x, o, l, p;
			if (y === "c") r = S(e) + r, e = "";
			else {
				e = +e;
				var C = e < 0 || 1 / e < 0;
				if (e = isNaN(e) ? c : S(Math.abs(e), _), v && (e = tn(e)), C && +e == 0 && f !== "+" && (C = !1), n = (C ? f === "(" ? f : s : f === "-" || f === "(" ? "" : f) + n, r = (y === "s" && !isNaN(e) && nn !== void 0 ? ln[8 + nn / 3] : "") + r + (C && f === "(" ? ")" : ""), ee) {
					for (o = -1, l = e.length; ++o < l;) if (p = e.charCodeAt(o), 48 > p || p > 57) {
						r = (p === 46 ? i + e.slice(o + 1) : e.slice(o)) + r, e = e.slice(0, o);
						break;
					}
				}
			}
			g && !m && (e = t(e, Infinity));
			var w = n.length + e.length + r.length, T = w < h ? Array(h - w + 1).join(u) : "";
			switch (g && m && (e = t(T + e, T.length ? h - r.length : Infinity), T = ""), d) {
				case "<":
					e = n + e + r + T;
					break;
				case "=":
					e = n + T + e + r;
					break;
				case "^":
					e = T.slice(0, w = T.length >> 1) + n + e + r + T.slice(w);
					break;
				default: e = T + n + e + r;
			}
			return a(e);
		}
		return C.toString = function() {
			return e + "";
		}, C;
	}
	function u(e, t) {
		var n = Math.max(-8, Math.min(8, Math.floor(Yt(t) / 3))) * 3, r = 10 ** -n, i = l((e = $t(e), e.type = "f", e), { suffix: ln[8 + n / 3] });
		return function(e) {
			return i(r * e);
		};
	}
	return {
		format: l,
		formatPrefix: u
	};
}
var dn, fn, pn;
mn({
	thousands: ",",
	grouping: [3],
	currency: ["$", ""]
});
function mn(e) {
	return dn = un(e), fn = dn.format, pn = dn.formatPrefix, dn;
}
function hn(e) {
	return Math.max(0, -Yt(Math.abs(e)));
}
function gn(e, t) {
	return Math.max(0, Math.max(-8, Math.min(8, Math.floor(Yt(t) / 3))) * 3 - Yt(Math.abs(e)));
}
function _n(e, t) {
	return e = Math.abs(e), t = Math.abs(t) - e, Math.max(0, Yt(t) - Yt(e)) + 1;
}
// node_modules/d3-scale/dist/d3-scale.mjs
function vn(e, t) {
	switch (arguments.length) {
		case 0: break;
		case 1:
			this.range(e);
			break;
		default: this.range(t).domain(e);
	}
	return this;
}
function yn(e) {
	return function() {
		return e;
	};
}
function bn(e) {
	return +e;
}
var xn = [0, 1];
function Sn(e) {
	return e;
}
function Cn(e, t) {
	return (t -= e = +e) ? function(n) {
		return (n - e) / t;
	} : yn(isNaN(t) ? NaN : .5);
}
function wn(e, t) {
	var n;
	return e > t && (n = e, e = t, t = n), function(n) {
		return Math.max(e, Math.min(t, n));
	};
}
function Tn(e, t, n) {
	var r = e[0], i = e[1], a = t[0], o = t[1];
	return i < r ? (r = Cn(i, r), a = n(o, a)) : (r = Cn(r, i), a = n(a, o)), function(e) {
		return a(r(e));
	};
}
function En(e, t, n) {
	var r = Math.min(e.length, t.length) - 1, i = Array(r), a = Array(r), o = -1;
	for (e[r] < e[0] && (e = e.slice().reverse(), t = t.slice().reverse()); ++o < r;) i[o] = Cn(e[o], e[o + 1]), a[o] = n(t[o], t[o + 1]);
	return function(t) {
		var n = g(e, t, 1, r) - 1;
		return a[n](i[n](t));
	};
}
function Dn(e, t) {
	return t.domain(e.domain()).range(e.range()).interpolate(e.interpolate()).clamp(e.clamp()).unknown(e.unknown());
}
function On() {
	var e = xn, t = xn, n = kt, r, i, a, o = Sn, s, c, l;
	function u() {
		var n = Math.min(e.length, t.length);
		return o !== Sn && (o = wn(e[0], e[n - 1])), s = n > 2 ? En : Tn, c = l = null, d;
	}
	function d(i) {
		return i == null || isNaN(i = +i) ? a : (c ||= s(e.map(r), t, n))(r(o(i)));
	}
	return d.invert = function(n) {
		return o(i((l ||= s(t, e.map(r), N))(n)));
	}, d.domain = function(t) {
		return arguments.length ? (e = Array.from(t, bn), u()) : e.slice();
	}, d.range = function(e) {
		return arguments.length ? (t = Array.from(e), u()) : t.slice();
	}, d.rangeRound = function(e) {
		return t = Array.from(e), n = At, u();
	}, d.clamp = function(e) {
		return arguments.length ? (o = e ? !0 : Sn, u()) : o !== Sn;
	}, d.interpolate = function(e) {
		return arguments.length ? (n = e, u()) : n;
	}, d.unknown = function(e) {
		return arguments.length ? (a = e, d) : a;
	}, function(e, t) {
		return r = e, i = t, u();
	};
}
function kn() {
	return On()(Sn, Sn);
}
function An(e, t, n, r) {
	var i = ee(e, t, n), a;
	switch (r = $t(r ?? ",f"), r.type) {
		case "s":
			var o = Math.max(Math.abs(e), Math.abs(t));
			return r.precision == null && !isNaN(a = gn(i, o)) && (r.precision = a), pn(r, o);
		case "":
		case "e":
		case "g":
		case "p":
		case "r":
			r.precision == null && !isNaN(a = _n(i, Math.max(Math.abs(e), Math.abs(t)))) && (r.precision = a - (r.type === "e"));
			break;
		case "f":
		case "%": r.precision == null && !isNaN(a = hn(i)) && (r.precision = a - (r.type === "%") * 2);
	}
	return fn(r);
}
function jn(e) {
	var t = e.domain;
	return e.ticks = function(e) {
		var n = t();
		return x(n[0], n[n.length - 1], e ?? 10);
	}, e.tickFormat = function(e, n) {
		var r = t();
		return An(r[0], r[r.length - 1], e ?? 10, n);
	}, e.nice = function(n) {
		n ??= 10;
		var r = t(), i = 0, a = r.length - 1, o = r[i], s = r[a], c, l, u = 10;
		for (s < o && (l = o, o = s, s = l, l = i, i = a, a = l); u-- > 0;) {
			if (l = S(o, s, n), l === c) return r[i] = o, r[a] = s, t(r);
			if (l > 0) o = Math.floor(o / l) * l, s = Math.ceil(s / l) * l;
			else if (l < 0) o = Math.ceil(o * l) / l, s = Math.floor(s * l) / l;
			else break;
			c = l;
		}
		return e;
	}, e;
}
function Mn() {
	var e = kn();
	return e.copy = function() {
		return Dn(e, Mn());
	}, vn.apply(e, arguments), jn(e);
}
function Nn(e, t) {
	e = e.slice();
	var n = 0, r = e.length - 1, i = e[n], a = e[r], o;
	return a < i && (o = n, n = r, r = o, o = i, i = a, a = o), e[n] = t.floor(i), e[r] = t.ceil(a), e;
}
function Pn(e) {
	return Math.log(e);
}
function Fn(e) {
	return Math.exp(e);
}
function In(e) {
	return -Math.log(-e);
}
function Ln(e) {
	return -Math.exp(-e);
}
function Rn(e) {
	return isFinite(e) ? +("1e" + e) : e < 0 ? 0 : e;
}
function zn(e) {
	return e === 10 ? Rn : e === Math.E ? Math.exp : (t) => e ** +t;
}
function Bn(e) {
	return e === Math.E ? Math.log : e === 10 && Math.log10 || e === 2 && Math.log2 || (e = Math.log(e), (t) => Math.log(t) / e);
}
function Vn(e) {
	return (t, n) => -e(-t, n);
}
function Hn(e) {
	let t = e(Pn, Fn), n = t.domain, r = 10, i, a;
	function o() {
		return i = Bn(r), a = zn(r), n()[0] < 0 ? (i = Vn(i), a = Vn(a), e(In, Ln)) : e(Pn, Fn), t;
	}
	return t.base = function(e) {
		return arguments.length ? (r = +e, o()) : r;
	}, t.domain = function(e) {
		return arguments.length ? (n(e), o()) : n();
	}, t.ticks = (e) => {
		let t = n(), o = t[0], s = t[t.length - 1], c = s < o;
		c && ([o, s] = [s, o]);
		let l = i(o), u = i(s), d, f, p = e == null ? 10 : +e, m = [];
		if (!(r % 1) && u - l < p) {
			if (l = Math.floor(l), u = Math.ceil(u), o > 0) {
				for (; l <= u; ++l) for (d = 1; d < r; ++d) if (f = l < 0 ? d / a(-l) : d * a(l), !(f < o)) {
					if (f > s) break;
					m.push(f);
				}
			} else for (; l <= u; ++l) for (d = r - 1; d >= 1; --d) if (f = l > 0 ? d / a(-l) : d * a(l), !(f < o)) {
				if (f > s) break;
				m.push(f);
			}
			m.length * 2 < p && (m = x(o, s, p));
		} else m = x(l, u, Math.min(u - l, p)).map(a);
		return c ? m.reverse() : m;
	}, t.tickFormat = (e, n) => {
		if (e ??= 10, n ??= r === 10 ? "s" : ",", typeof n != "function" && (!(r % 1) && (n = $t(n)).precision == null && (n.trim = !0), n = fn(n)), e === Infinity) return n;
		let o = Math.max(1, r * e / t.ticks().length);
		return (e) => {
			let t = e / a(Math.round(i(e)));
			return t * r < r - .5 && (t *= r), t <= o ? n(e) : "";
		};
	}, t.nice = () => n(Nn(n(), {
		floor: (e) => a(Math.floor(i(e))),
		ceil: (e) => a(Math.ceil(i(e)))
	})), t;
}
function Un() {
	let e = Hn(On()).domain([1, 10]);
	return e.copy = () => Dn(e, Un()).base(e.base()), vn.apply(e, arguments), e;
}
// node_modules/d3-path/dist/d3-path.mjs
var Wn = Math.PI, Gn = 2 * Wn, Kn = 1e-6, qn = Gn - Kn;
function Jn(e) {
	this._ += e[0];
	for (let t = 1, n = e.length; t < n; ++t) this._ += arguments[t] + e[t];
}
function Yn(e) {
	let t = Math.floor(e);
	if (!(t >= 0)) throw Error(`invalid digits: ${e}`);
	if (t > 15) return Jn;
	let n = 10 ** t;
	return function(e) {
		this._ += e[0];
		for (let t = 1, r = e.length; t < r; ++t) this._ += Math.round(arguments[t] * n) / n + e[t];
	};
}
function Xn(e, t, n, r) {
	return e === n && t === r;
}
function Zn(e) {
	let t = Math.floor(e);
	if (!(t <= 15)) return Xn;
	let n = 10 ** t, r = function(e) {
		return Math.round(e * n);
	};
	return function(e, t, n, i) {
		return r(e) === r(n) && r(t) === r(i);
	};
}
var Qn = class {
	constructor(e) {
		this._x0 = this._y0 = this._x1 = this._y1 = null, this._ = "", this._append = e == null ? Jn : Yn(e), this._equal = e == null ? Xn : Zn(e);
	}
	moveTo(e, t) {
		this._append`M${this._x0 = this._x1 = +e},${this._y0 = this._y1 = +t}`;
	}
	closePath() {
		this._x1 !== null && (this._x1 = this._x0, this._y1 = this._y0, this._append`Z`);
	}
	lineTo(e, t) {
		this._append`L${this._x1 = +e},${this._y1 = +t}`;
	}
	quadraticCurveTo(e, t, n, r) {
		this._append`Q${+e},${+t},${this._x1 = +n},${this._y1 = +r}`;
	}
	bezierCurveTo(e, t, n, r, i, a) {
		this._append`C${+e},${+t},${+n},${+r},${this._x1 = +i},${this._y1 = +a}`;
	}
	arcTo(e, t, n, r, i) {
		if (e = +e, t = +t, n = +n, r = +r, i = +i, i < 0) throw Error(`negative radius: ${i}`);
		let a = this._x1, o = this._y1, s = n - e, c = r - t, l = a - e, u = o - t, d = l * l + u * u;
		if (this._x1 === null) this._append`M${this._x1 = e},${this._y1 = t}`;
		else if (d > Kn) {
			if (!(Math.abs(u * s - c * l) > Kn) || !i) this._append`L${this._x1 = e},${this._y1 = t}`;
			else {
				let f = n - a, p = r - o, m = s * s + c * c, h = f * f + p * p, g = Math.sqrt(m), _ = Math.sqrt(d), v = i * Math.tan((Wn - Math.acos((m + d - h) / (2 * g * _))) / 2), y = v / _, b = v / g;
				Math.abs(y - 1) > Kn && this._append`L${e + y * l},${t + y * u}`, this._append`A${i},${i},0,0,${+(u * f > l * p)},${this._x1 = e + b * s},${this._y1 = t + b * c}`;
			}
		}
	}
	arc(e, t, n, r, i, a) {
		if (e = +e, t = +t, n = +n, a = !!a, n < 0) throw Error(`negative radius: ${n}`);
		let o = n * Math.cos(r), s = n * Math.sin(r), c = e + o, l = t + s, u = 1 ^ a, d = a ? r - i : i - r;
		if (this._x1 === null ? this._append`M${c},${l}` : (Math.abs(this._x1 - c) > Kn || Math.abs(this._y1 - l) > Kn) && this._append`L${c},${l}`, n) {
			if (d < 0 && (d = d % Gn + Gn), d > qn) this._append`A${n},${n},0,1,${u},${e - o},${t - s}A${n},${n},0,1,${u},${this._x1 = c},${this._y1 = l}`;
			else if (d > Kn) {
				let a = e + n * Math.cos(i), o = t + n * Math.sin(i);
				if (d >= Wn && this._equal(c, l, a, o)) {
					d /= 2;
					let i = r + d;
					this._append`A${n},${n},0,${+(d >= Wn)},${u},${e + n * Math.cos(i)},${t + n * Math.sin(i)}`;
				}
				this._append`A${n},${n},0,${+(d >= Wn)},${u},${this._x1 = a},${this._y1 = o}`;
			}
		}
	}
	rect(e, t, n, r) {
		this._append`M${this._x0 = this._x1 = +e},${this._y0 = this._y1 = +t}h${n = +n}v${+r}h${-n}Z`;
	}
	toString() {
		return this._;
	}
};
Qn.prototype;
// node_modules/d3-shape/dist/d3-shape.mjs
function $n(e) {
	return function() {
		return e;
	};
}
var er = Math.cos, tr = Math.sin, nr = Math.sqrt, rr = 1e-12, ir = Math.PI;
ir / 2;
var ar = 2 * ir;
function or(e) {
	let t = 3;
	return e.digits = function(n) {
		if (!arguments.length) return t;
		if (n == null) t = null;
		else {
			let e = Math.floor(n);
			if (!(e >= 0)) throw RangeError(`invalid digits: ${n}`);
			t = e;
		}
		return e;
	}, () => new Qn(t);
}
Array.prototype.slice;
function sr(e) {
	return typeof e == "object" && "length" in e ? e : Array.from(e);
}
function cr(e) {
	this._context = e;
}
cr.prototype = {
	areaStart: function() {
		this._line = 0;
	},
	areaEnd: function() {
		this._line = NaN;
	},
	lineStart: function() {
		this._point = 0;
	},
	lineEnd: function() {
		(this._line || this._line !== 0 && this._point === 1) && this._context.closePath(), this._line = 1 - this._line;
	},
	point: function(e, t) {
		switch (e = +e, t = +t, this._point) {
			case 0:
				this._point = 1, this._line ? this._context.lineTo(e, t) : this._context.moveTo(e, t);
				break;
			case 1: this._point = 2;
			default: this._context.lineTo(e, t);
		}
	}
};
function lr(e) {
	return new cr(e);
}
function ur(e) {
	return e[0];
}
function dr(e) {
	return e[1];
}
function fr(e, t) {
	var n = $n(!0), r = null, i = lr, a = null, o = or(s);
	e = typeof e == "function" ? e : e === void 0 ? ur : $n(e), t = typeof t == "function" ? t : t === void 0 ? dr : $n(t);
	function s(s) {
		var c, l = (s = sr(s)).length, u, d = !1, f;
		for (r ?? (a = i(f = o())), c = 0; c <= l; ++c) !(c < l && n(u = s[c], c, s)) === d && ((d = !d) ? a.lineStart() : a.lineEnd()), d && a.point(+e(u, c, s), +t(u, c, s));
		if (f) return a = null, f + "" || null;
	}
	return s.x = function(t) {
		return arguments.length ? (e = typeof t == "function" ? t : $n(+t), s) : e;
	}, s.y = function(e) {
		return arguments.length ? (t = typeof e == "function" ? e : $n(+e), s) : t;
	}, s.defined = function(e) {
		return arguments.length ? (n = typeof e == "function" ? e : $n(!!e), s) : n;
	}, s.curve = function(e) {
		return arguments.length ? (i = e, r != null && (a = i(r)), s) : i;
	}, s.context = function(e) {
		return arguments.length ? (e == null ? r = a = null : a = i(r = e), s) : r;
	}, s;
}
mr(lr);
function pr(e) {
	this._curve = e;
}
pr.prototype = {
	areaStart: function() {
		this._curve.areaStart();
	},
	areaEnd: function() {
		this._curve.areaEnd();
	},
	lineStart: function() {
		this._curve.lineStart();
	},
	lineEnd: function() {
		this._curve.lineEnd();
	},
	point: function(e, t) {
		this._curve.point(t * Math.sin(e), t * -Math.cos(e));
	}
};
function mr(e) {
	function t(t) {
		return new pr(e(t));
	}
	return t._curve = e, t;
}
nr(3), nr(1 / 3) * 2;
var hr = tr(ir / 10) / tr(7 * ir / 10);
tr(ar / 10) * hr, -er(ar / 10) * hr, nr(3), nr(3), nr(3) / 2, (1 / nr(12) / 2 + 1) * 3;
function gr() {}
function _r(e, t, n) {
	e._context.bezierCurveTo((2 * e._x0 + e._x1) / 3, (2 * e._y0 + e._y1) / 3, (e._x0 + 2 * e._x1) / 3, (e._y0 + 2 * e._y1) / 3, (e._x0 + 4 * e._x1 + t) / 6, (e._y0 + 4 * e._y1 + n) / 6);
}
function vr(e) {
	this._context = e;
}
vr.prototype = {
	areaStart: function() {
		this._line = 0;
	},
	areaEnd: function() {
		this._line = NaN;
	},
	lineStart: function() {
		this._x0 = this._x1 = this._y0 = this._y1 = NaN, this._point = 0;
	},
	lineEnd: function() {
		switch (this._point) {
			case 3: _r(this, this._x1, this._y1);
			case 2: this._context.lineTo(this._x1, this._y1);
		}
		(this._line || this._line !== 0 && this._point === 1) && this._context.closePath(), this._line = 1 - this._line;
	},
	point: function(e, t) {
		switch (e = +e, t = +t, this._point) {
			case 0:
				this._point = 1, this._line ? this._context.lineTo(e, t) : this._context.moveTo(e, t);
				break;
			case 1:
				this._point = 2;
				break;
			case 2: this._point = 3, this._context.lineTo((5 * this._x0 + this._x1) / 6, (5 * this._y0 + this._y1) / 6);
			default: _r(this, e, t);
		}
		this._x0 = this._x1, this._x1 = e, this._y0 = this._y1, this._y1 = t;
	}
};
function yr(e, t) {
	this._basis = new vr(e), this._beta = t;
}
yr.prototype = {
	lineStart: function() {
		this._x = [], this._y = [], this._basis.lineStart();
	},
	lineEnd: function() {
		var e = this._x, t = this._y, n = e.length - 1;
		if (n > 0) for (var r = e[0], i = t[0], a = e[n] - r, o = t[n] - i, s = -1, c; ++s <= n;) c = s / n, this._basis.point(this._beta * e[s] + (1 - this._beta) * (r + c * a), this._beta * t[s] + (1 - this._beta) * (i + c * o));
		this._x = this._y = null, this._basis.lineEnd();
	},
	point: function(e, t) {
		this._x.push(+e), this._y.push(+t);
	}
}, (function e(t) {
	function n(e) {
		return t === 1 ? new vr(e) : new yr(e, t);
	}
	return n.beta = function(t) {
		return e(+t);
	}, n;
})(.85);
function br(e, t, n) {
	e._context.bezierCurveTo(e._x1 + e._k * (e._x2 - e._x0), e._y1 + e._k * (e._y2 - e._y0), e._x2 + e._k * (e._x1 - t), e._y2 + e._k * (e._y1 - n), e._x2, e._y2);
}
function xr(e, t) {
	this._context = e, this._k = (1 - t) / 6;
}
xr.prototype = {
	areaStart: function() {
		this._line = 0;
	},
	areaEnd: function() {
		this._line = NaN;
	},
	lineStart: function() {
		this._x0 = this._x1 = this._x2 = this._y0 = this._y1 = this._y2 = NaN, this._point = 0;
	},
	lineEnd: function() {
		switch (this._point) {
			case 2:
				this._context.lineTo(this._x2, this._y2);
				break;
			case 3: br(this, this._x1, this._y1);
		}
		(this._line || this._line !== 0 && this._point === 1) && this._context.closePath(), this._line = 1 - this._line;
	},
	point: function(e, t) {
		switch (e = +e, t = +t, this._point) {
			case 0:
				this._point = 1, this._line ? this._context.lineTo(e, t) : this._context.moveTo(e, t);
				break;
			case 1:
				this._point = 2, this._x1 = e, this._y1 = t;
				break;
			case 2: this._point = 3;
			default: br(this, e, t);
		}
		this._x0 = this._x1, this._x1 = this._x2, this._x2 = e, this._y0 = this._y1, this._y1 = this._y2, this._y2 = t;
	}
}, (function e(t) {
	function n(e) {
		return new xr(e, t);
	}
	return n.tension = function(t) {
		return e(+t);
	}, n;
})(0);
function Sr(e, t) {
	this._context = e, this._k = (1 - t) / 6;
}
Sr.prototype = {
	areaStart: gr,
	areaEnd: gr,
	lineStart: function() {
		this._x0 = this._x1 = this._x2 = this._x3 = this._x4 = this._x5 = this._y0 = this._y1 = this._y2 = this._y3 = this._y4 = this._y5 = NaN, this._point = 0;
	},
	lineEnd: function() {
		switch (this._point) {
			case 1:
				this._context.moveTo(this._x3, this._y3), this._context.closePath();
				break;
			case 2:
				this._context.lineTo(this._x3, this._y3), this._context.closePath();
				break;
			case 3: this.point(this._x3, this._y3), this.point(this._x4, this._y4), this.point(this._x5, this._y5);
		}
	},
	point: function(e, t) {
		switch (e = +e, t = +t, this._point) {
			case 0:
				this._point = 1, this._x3 = e, this._y3 = t;
				break;
			case 1:
				this._point = 2, this._context.moveTo(this._x4 = e, this._y4 = t);
				break;
			case 2:
				this._point = 3, this._x5 = e, this._y5 = t;
				break;
			default: br(this, e, t);
		}
		this._x0 = this._x1, this._x1 = this._x2, this._x2 = e, this._y0 = this._y1, this._y1 = this._y2, this._y2 = t;
	}
}, (function e(t) {
	function n(e) {
		return new Sr(e, t);
	}
	return n.tension = function(t) {
		return e(+t);
	}, n;
})(0);
function Cr(e, t) {
	this._context = e, this._k = (1 - t) / 6;
}
Cr.prototype = {
	areaStart: function() {
		this._line = 0;
	},
	areaEnd: function() {
		this._line = NaN;
	},
	lineStart: function() {
		this._x0 = this._x1 = this._x2 = this._y0 = this._y1 = this._y2 = NaN, this._point = 0;
	},
	lineEnd: function() {
		(this._line || this._line !== 0 && this._point === 3) && this._context.closePath(), this._line = 1 - this._line;
	},
	point: function(e, t) {
		switch (e = +e, t = +t, this._point) {
			case 0:
				this._point = 1;
				break;
			case 1:
				this._point = 2;
				break;
			case 2:
				this._point = 3, this._line ? this._context.lineTo(this._x2, this._y2) : this._context.moveTo(this._x2, this._y2);
				break;
			case 3: this._point = 4;
			default: br(this, e, t);
		}
		this._x0 = this._x1, this._x1 = this._x2, this._x2 = e, this._y0 = this._y1, this._y1 = this._y2, this._y2 = t;
	}
}, (function e(t) {
	function n(e) {
		return new Cr(e, t);
	}
	return n.tension = function(t) {
		return e(+t);
	}, n;
})(0);
function wr(e, t, n) {
	var r = e._x1, i = e._y1, a = e._x2, o = e._y2;
	if (e._l01_a > rr) {
		var s = 2 * e._l01_2a + 3 * e._l01_a * e._l12_a + e._l12_2a, c = 3 * e._l01_a * (e._l01_a + e._l12_a);
		r = (r * s - e._x0 * e._l12_2a + e._x2 * e._l01_2a) / c, i = (i * s - e._y0 * e._l12_2a + e._y2 * e._l01_2a) / c;
	}
	if (e._l23_a > rr) {
		var l = 2 * e._l23_2a + 3 * e._l23_a * e._l12_a + e._l12_2a, u = 3 * e._l23_a * (e._l23_a + e._l12_a);
		a = (a * l + e._x1 * e._l23_2a - t * e._l12_2a) / u, o = (o * l + e._y1 * e._l23_2a - n * e._l12_2a) / u;
	}
	e._context.bezierCurveTo(r, i, a, o, e._x2, e._y2);
}
function Tr(e, t) {
	this._context = e, this._alpha = t;
}
Tr.prototype = {
	areaStart: function() {
		this._line = 0;
	},
	areaEnd: function() {
		this._line = NaN;
	},
	lineStart: function() {
		this._x0 = this._x1 = this._x2 = this._y0 = this._y1 = this._y2 = NaN, this._l01_a = this._l12_a = this._l23_a = this._l01_2a = this._l12_2a = this._l23_2a = this._point = 0;
	},
	lineEnd: function() {
		switch (this._point) {
			case 2:
				this._context.lineTo(this._x2, this._y2);
				break;
			case 3: this.point(this._x2, this._y2);
		}
		(this._line || this._line !== 0 && this._point === 1) && this._context.closePath(), this._line = 1 - this._line;
	},
	point: function(e, t) {
		if (e = +e, t = +t, this._point) {
			var n = this._x2 - e, r = this._y2 - t;
			this._l23_a = Math.sqrt(this._l23_2a = (n * n + r * r) ** +this._alpha);
		}
		switch (this._point) {
			case 0:
				this._point = 1, this._line ? this._context.lineTo(e, t) : this._context.moveTo(e, t);
				break;
			case 1:
				this._point = 2;
				break;
			case 2: this._point = 3;
			default: wr(this, e, t);
		}
		this._l01_a = this._l12_a, this._l12_a = this._l23_a, this._l01_2a = this._l12_2a, this._l12_2a = this._l23_2a, this._x0 = this._x1, this._x1 = this._x2, this._x2 = e, this._y0 = this._y1, this._y1 = this._y2, this._y2 = t;
	}
}, (function e(t) {
	function n(e) {
		return t ? new Tr(e, t) : new xr(e, 0);
	}
	return n.alpha = function(t) {
		return e(+t);
	}, n;
})(.5);
function Er(e, t) {
	this._context = e, this._alpha = t;
}
Er.prototype = {
	areaStart: gr,
	areaEnd: gr,
	lineStart: function() {
		this._x0 = this._x1 = this._x2 = this._x3 = this._x4 = this._x5 = this._y0 = this._y1 = this._y2 = this._y3 = this._y4 = this._y5 = NaN, this._l01_a = this._l12_a = this._l23_a = this._l01_2a = this._l12_2a = this._l23_2a = this._point = 0;
	},
	lineEnd: function() {
		switch (this._point) {
			case 1:
				this._context.moveTo(this._x3, this._y3), this._context.closePath();
				break;
			case 2:
				this._context.lineTo(this._x3, this._y3), this._context.closePath();
				break;
			case 3: this.point(this._x3, this._y3), this.point(this._x4, this._y4), this.point(this._x5, this._y5);
		}
	},
	point: function(e, t) {
		if (e = +e, t = +t, this._point) {
			var n = this._x2 - e, r = this._y2 - t;
			this._l23_a = Math.sqrt(this._l23_2a = (n * n + r * r) ** +this._alpha);
		}
		switch (this._point) {
			case 0:
				this._point = 1, this._x3 = e, this._y3 = t;
				break;
			case 1:
				this._point = 2, this._context.moveTo(this._x4 = e, this._y4 = t);
				break;
			case 2:
				this._point = 3, this._x5 = e, this._y5 = t;
				break;
			default: wr(this, e, t);
		}
		this._l01_a = this._l12_a, this._l12_a = this._l23_a, this._l01_2a = this._l12_2a, this._l12_2a = this._l23_2a, this._x0 = this._x1, this._x1 = this._x2, this._x2 = e, this._y0 = this._y1, this._y1 = this._y2, this._y2 = t;
	}
}, (function e(t) {
	function n(e) {
		return t ? new Er(e, t) : new Sr(e, 0);
	}
	return n.alpha = function(t) {
		return e(+t);
	}, n;
})(.5);
function Dr(e, t) {
	this._context = e, this._alpha = t;
}
Dr.prototype = {
	areaStart: function() {
		this._line = 0;
	},
	areaEnd: function() {
		this._line = NaN;
	},
	lineStart: function() {
		this._x0 = this._x1 = this._x2 = this._y0 = this._y1 = this._y2 = NaN, this._l01_a = this._l12_a = this._l23_a = this._l01_2a = this._l12_2a = this._l23_2a = this._point = 0;
	},
	lineEnd: function() {
		(this._line || this._line !== 0 && this._point === 3) && this._context.closePath(), this._line = 1 - this._line;
	},
	point: function(e, t) {
		if (e = +e, t = +t, this._point) {
			var n = this._x2 - e, r = this._y2 - t;
			this._l23_a = Math.sqrt(this._l23_2a = (n * n + r * r) ** +this._alpha);
		}
		switch (this._point) {
			case 0:
				this._point = 1;
				break;
			case 1:
				this._point = 2;
				break;
			case 2:
				this._point = 3, this._line ? this._context.lineTo(this._x2, this._y2) : this._context.moveTo(this._x2, this._y2);
				break;
			case 3: this._point = 4;
			default: wr(this, e, t);
		}
		this._l01_a = this._l12_a, this._l12_a = this._l23_a, this._l01_2a = this._l12_2a, this._l12_2a = this._l23_2a, this._x0 = this._x1, this._x1 = this._x2, this._x2 = e, this._y0 = this._y1, this._y1 = this._y2, this._y2 = t;
	}
}, (function e(t) {
	function n(e) {
		return t ? new Dr(e, t) : new Cr(e, 0);
	}
	return n.alpha = function(t) {
		return e(+t);
	}, n;
})(.5);
function Or(e) {
	return e < 0 ? -1 : 1;
}
function kr(e, t, n) {
	var r = e._x1 - e._x0, i = t - e._x1, a = (e._y1 - e._y0) / (r || i < 0 && -0), o = (n - e._y1) / (i || r < 0 && -0), s = (a * i + o * r) / (r + i);
	return (Or(a) + Or(o)) * Math.min(Math.abs(a), Math.abs(o), .5 * Math.abs(s)) || 0;
}
function Ar(e, t) {
	var n = e._x1 - e._x0;
	return n ? (3 * (e._y1 - e._y0) / n - t) / 2 : t;
}
function jr(e, t, n) {
	var r = e._x0, i = e._y0, a = e._x1, o = e._y1, s = (a - r) / 3;
	e._context.bezierCurveTo(r + s, i + s * t, a - s, o - s * n, a, o);
}
function Mr(e) {
	this._context = e;
}
Mr.prototype = {
	areaStart: function() {
		this._line = 0;
	},
	areaEnd: function() {
		this._line = NaN;
	},
	lineStart: function() {
		this._x0 = this._x1 = this._y0 = this._y1 = this._t0 = NaN, this._point = 0;
	},
	lineEnd: function() {
		switch (this._point) {
			case 2:
				this._context.lineTo(this._x1, this._y1);
				break;
			case 3: jr(this, this._t0, Ar(this, this._t0));
		}
		(this._line || this._line !== 0 && this._point === 1) && this._context.closePath(), this._line = 1 - this._line;
	},
	point: function(e, t) {
		var n = NaN;
		if (e = +e, t = +t, e !== this._x1 || t !== this._y1) {
			switch (this._point) {
				case 0:
					this._point = 1, this._line ? this._context.lineTo(e, t) : this._context.moveTo(e, t);
					break;
				case 1:
					this._point = 2;
					break;
				case 2:
					this._point = 3, jr(this, Ar(this, n = kr(this, e, t)), n);
					break;
				default: jr(this, this._t0, n = kr(this, e, t));
			}
			this._x0 = this._x1, this._x1 = e, this._y0 = this._y1, this._y1 = t, this._t0 = n;
		}
	}
}, Object.create(Mr.prototype).point = function(e, t) {
	Mr.prototype.point.call(this, t, e);
};
// src/dom.ts
function P(e, t = {}, ...n) {
	let r = document.createElement(e);
	return Pr(r, t), r.append(...n.filter((e) => e != null && e !== !1)), r;
}
var Nr = "http://www.w3.org/2000/svg";
function F(e, t = {}, ...n) {
	let r = document.createElementNS(Nr, e);
	for (let [e, n] of Object.entries(t)) r.setAttribute(e, String(n));
	return r.append(...n), r;
}
function Pr(e, t) {
	for (let [n, r] of Object.entries(t)) r != null && r !== !1 && (n.startsWith("on") ? e.addEventListener(n.slice(2), r) : n === "class" ? e.className = String(r) : n.includes("-") || n === "role" || n === "for" || n === "colspan" || n === "scope" ? e.setAttribute(n, String(r)) : e[n] = r);
}
function I(e) {
	let t = "";
	for (let n of e) {
		let e = n.codePointAt(0);
		t += n === "\n" ? "⏎" : n === "	" ? "⇥" : e < 32 ? String.fromCodePoint(9216 + e) : e === 127 ? "␡" : e >= 128 && e < 160 || e >= 8203 && e <= 8207 || e >= 8234 && e <= 8238 || e >= 8294 && e <= 8297 || e === 65279 || e >= 55296 && e <= 57343 ? `\\u${e.toString(16).padStart(4, "0")}` : n;
	}
	return t = t.replace(/^ +| +$/g, (e) => "␣".repeat(e.length)), `\u2068${t === "" ? "∅" : t}\u2069`;
}
function L(e) {
	let t = 100 * e;
	return t === 0 ? "0 %" : t >= 99.95 && t < 100 ? `${t.toFixed(2)} %` : `${Number(t.toPrecision(t >= 10 ? 3 : 2))} %`;
}
function R(e) {
	return e.toLocaleString("en");
}
function z(e, t = 3) {
	return e.toFixed(t);
}
function Fr(e, t) {
	let n = URL.createObjectURL(t);
	P("a", {
		href: n,
		download: e
	}).click(), setTimeout(() => URL.revokeObjectURL(n), 1e4);
}
// src/palette.ts
var Ir = {
	ground: "#ffffff",
	ink: "#1b1f24",
	muted: "#57606a",
	faint: "#dfe3e8",
	accent: "#0b57d0",
	only: "#c2185b",
	shared: "#8c98a4",
	residual: "#6e7781",
	mlp: "#b35900",
	dark: !1
}, Lr = {
	ground: "#0f1419",
	ink: "#e6edf3",
	muted: "#9aa7b4",
	faint: "#2a323b",
	accent: "#7ab8ff",
	only: "#ff7eb6",
	shared: "#6b7783",
	residual: "#8b98a5",
	mlp: "#ffa657",
	dark: !0
};
function Rr(e, t, n) {
	return Xe(100 + 250 * (e + .5) / Math.max(t, 1), 58, (n.dark ? 70 : 50) + (e % 2 ? 6 : -6)).formatHex();
}
var zr = [
	"#0b57d0",
	"#b5480b",
	"#00796b",
	"#8e24aa",
	"#6d5a00"
], Br = [
	"#7ab8ff",
	"#ffa657",
	"#56d4bc",
	"#d7a1ff",
	"#e3c341"
];
function Vr(e, t) {
	let n = t.dark ? Br : zr;
	return n[e % n.length];
}
function Hr(e) {
	let { r: t, g: n, b: r } = be(e), i = (e) => (e /= 255) <= .04045 ? e / 12.92 : ((e + .055) / 1.055) ** 2.4;
	return .2126 * i(t) + .7152 * i(n) + .0722 * i(r) > .179 ? "#000000" : "#ffffff";
}
// src/curve.ts
var Ur = 372, Wr = 190, Gr = 34, Kr = 26, qr = 2e3, Jr = {
	residual_chain: "chain",
	residual_mlp_chain: "+ MLPs"
}, Yr = {
	residual_chain: "the output token's own residual chain fits from here",
	residual_mlp_chain: "and with its MLPs from here"
}, Xr = class {
	onSize;
	element;
	slider;
	svg;
	chips;
	x;
	y = Mn([0, 1], [166, Kr]);
	view;
	n = 1;
	constructor(e) {
		this.onSize = e, this.svg = F("svg", {
			viewBox: `0 0 ${Ur} ${Wr}`,
			role: "img",
			class: "curve"
		}), this.slider = P("input", {
			type: "range",
			min: "0",
			max: String(qr),
			step: "1",
			class: "size",
			id: "size",
			"aria-label": "Size of the trace, share of the edges that are on",
			oninput: () => this.onSize(t(this.view, this.x.invert(Gr + Number(this.slider.value) / qr * 326) * this.view.graph.n_edges)),
			onkeydown: (e) => this.key(e)
		}), this.chips = P("div", {
			class: "chips",
			role: "group",
			"aria-label": "Sizes worth a look"
		}), this.element = P("div", { class: "size-box" }, this.svg, P("div", { class: "slider" }, this.slider), this.chips), this.svg.addEventListener("pointerdown", (e) => {
			let n = this.svg.getBoundingClientRect(), r = (e.clientX - n.left) / n.width * Ur;
			r >= 30 && this.onSize(t(this.view, this.x.invert(Math.min(360, Math.max(Gr, r))) * this.view.graph.n_edges));
		});
	}
	key(e) {
		let t = {
			ArrowLeft: -1,
			ArrowDown: -1,
			ArrowRight: 1,
			ArrowUp: 1,
			PageDown: -10,
			PageUp: 10,
			Home: -1e9,
			End: 1e9
		};
		e.key in t && (e.preventDefault(), this.step(t[e.key]));
	}
	step(t) {
		let n = e(this.view, this.n) + t;
		this.onSize(this.view.grid[Math.max(0, Math.min(this.view.grid.length - 1, n))]);
	}
	update(e, t, r, i) {
		this.view = e, this.n = r;
		let a = e.graph.n_edges;
		this.x = Un([1 / a, 1], [Gr, 360]);
		let { x: o, y: s } = this, c = (e, t, n, r = {}) => F("text", {
			x: e,
			y: t,
			fill: i.muted,
			"font-size": 10,
			...r
		}, n), l = [];
		for (let e of [
			0,
			.5,
			1
		]) l.push(c(28, s(e) + 3, e.toFixed(1), { "text-anchor": "end" }));
		l.push(c(28, 13, "TV", { "text-anchor": "end" }));
		for (let e = 0; e > -9; e--) {
			let t = 10 ** e;
			if (t < 1 / a) break;
			l.push(F("line", {
				x1: o(t),
				x2: o(t),
				y1: s(0),
				y2: s(0) + 4,
				stroke: i.muted
			})), l.push(c(o(t), 183, L(t), { "text-anchor": e === 0 ? "end" : "middle" }));
		}
		l.push(F("line", {
			x1: Gr,
			x2: 360,
			y1: s(0),
			y2: s(0),
			stroke: i.muted
		})), l.push(F("line", {
			x1: Gr,
			x2: 360,
			y1: s(.1),
			y2: s(.1),
			stroke: i.muted,
			"stroke-width": .6
		}));
		for (let [t, n] of Object.entries(e.graph.landmarks)) l.push(F("line", {
			x1: o(n),
			x2: o(n),
			y1: 22,
			y2: s(0),
			stroke: i.muted,
			"stroke-dasharray": "2 3"
		}, F("title", {}, `${L(n)}: ${Yr[t] ?? t}`)), c(o(n) + (t === "residual_chain" ? -2 : 2), 16, Jr[t] ?? t, {
			"text-anchor": t === "residual_chain" ? "end" : "start",
			"font-size": 9
		}));
		let u = fr((e) => o(Math.max(e.size, 1 / a)), (e) => s(e.tv));
		for (let [n, r] of [["random", "1 3"], ["inverse", "5 3"]]) {
			let a = e.baselines[t]?.[n] ?? [];
			a.length && l.push(F("path", {
				d: u(a),
				fill: "none",
				stroke: i.muted,
				"stroke-dasharray": r,
				"stroke-width": 1.2
			}, F("title", {}, n === "random" ? "a random connected subgraph of the same size" : "everything but the trace")));
		}
		e.importances.forEach((n, r) => {
			let c = n === t, d = Vr(r, i), f = e.curves[n];
			if (l.push(F("path", {
				d: u(f),
				fill: "none",
				stroke: d,
				"stroke-width": c ? 2.2 : 1.1,
				"stroke-opacity": c ? 1 : .75
			}, F("title", {}, `traces by ${n}`))), c) for (let e of f) l.push(F("circle", {
				cx: o(Math.max(e.size, 1 / a)),
				cy: s(e.tv),
				r: 2,
				fill: d
			}));
			let p = e.density[n].size_at;
			p !== null && l.push(F("path", {
				d: `M${o(p)} ${s(.1)}l-4.5 -8h9z`,
				fill: d
			}, F("title", {}, `TV stays at most 0.1 from ${L(p)} on, by ${n}`)));
		});
		let d = r / a, f = n(e, t, r);
		l.push(F("line", {
			x1: o(d),
			x2: o(d),
			y1: 24,
			y2: 166,
			stroke: i.ink,
			"stroke-width": 1.2
		}), F("circle", {
			cx: o(d),
			cy: s(f.tv),
			r: 4.5,
			fill: i.ground,
			stroke: i.ink,
			"stroke-width": 2
		})), this.svg.replaceChildren(...l), this.svg.setAttribute("aria-label", `Total variation over size, traces by ${t}; ${L(d)} of the edges: ${f.exact ? "" : "about "}${f.tv.toFixed(3)}`), this.slider.value = String(Math.round((o(d) - Gr) / 326 * qr)), this.slider.setAttribute("aria-valuetext", `${L(d)} of the edges, ${R(r)} of ${R(a)}, total variation ${f.exact ? "" : "about "}${f.tv.toFixed(3)}`), this.updateChips(t);
	}
	updateChips(e) {
		let { view: t } = this, n = t.graph.n_edges, r = t.density[e].size_at, i = [
			...Object.entries(t.graph.landmarks).map(([e, t]) => [
				e === "residual_chain" ? "residual chain" : "with its MLPs",
				Math.round(t * n),
				Yr[e] ?? ""
			]),
			...r === null ? [] : [[
				"TV ≤ 0.1",
				Math.round(r * n),
				"the prediction holds from here on"
			]],
			[
				"everything",
				n,
				"the model itself"
			]
		], a = this.chips.getRootNode().activeElement, o = Array.from(this.chips.children).indexOf(a);
		this.chips.replaceChildren(...i.map(([e, t, r]) => P("button", {
			type: "button",
			title: r,
			"aria-pressed": String(t === this.n),
			onclick: () => this.onSize(t)
		}, `${e} ${L(t / n)}`))), o >= 0 && this.chips.children[o]?.focus();
	}
}, Zr = "http://www.w3.org/1999/xhtml", Qr = {
	svg: "http://www.w3.org/2000/svg",
	xhtml: Zr,
	xlink: "http://www.w3.org/1999/xlink",
	xml: "http://www.w3.org/XML/1998/namespace",
	xmlns: "http://www.w3.org/2000/xmlns/"
};
function $r(e) {
	var t = e += "", n = t.indexOf(":");
	return n >= 0 && (t = e.slice(0, n)) !== "xmlns" && (e = e.slice(n + 1)), Qr.hasOwnProperty(t) ? {
		space: Qr[t],
		local: e
	} : e;
}
function ei(e) {
	return function() {
		var t = this.ownerDocument, n = this.namespaceURI;
		return n === Zr && t.documentElement.namespaceURI === Zr ? t.createElement(e) : t.createElementNS(n, e);
	};
}
function ti(e) {
	return function() {
		return this.ownerDocument.createElementNS(e.space, e.local);
	};
}
function ni(e) {
	var t = $r(e);
	return (t.local ? ti : ei)(t);
}
function ri() {}
function ii(e) {
	return e == null ? ri : function() {
		return this.querySelector(e);
	};
}
function ai(e) {
	typeof e != "function" && (e = ii(e));
	for (var t = this._groups, n = t.length, r = Array(n), i = 0; i < n; ++i) for (var a = t[i], o = a.length, s = r[i] = Array(o), c, l, u = 0; u < o; ++u) (c = a[u]) && (l = e.call(c, c.__data__, u, a)) && ("__data__" in c && (l.__data__ = c.__data__), s[u] = l);
	return new B(r, this._parents);
}
function oi(e) {
	return e == null ? [] : Array.isArray(e) ? e : Array.from(e);
}
function si() {
	return [];
}
function ci(e) {
	return e == null ? si : function() {
		return this.querySelectorAll(e);
	};
}
function li(e) {
	return function() {
		return oi(e.apply(this, arguments));
	};
}
function ui(e) {
	e = typeof e == "function" ? li(e) : ci(e);
	for (var t = this._groups, n = t.length, r = [], i = [], a = 0; a < n; ++a) for (var o = t[a], s = o.length, c, l = 0; l < s; ++l) (c = o[l]) && (r.push(e.call(c, c.__data__, l, o)), i.push(c));
	return new B(r, i);
}
function di(e) {
	return function() {
		return this.matches(e);
	};
}
function fi(e) {
	return function(t) {
		return t.matches(e);
	};
}
var pi = Array.prototype.find;
function mi(e) {
	return function() {
		return pi.call(this.children, e);
	};
}
function hi() {
	return this.firstElementChild;
}
function gi(e) {
	return this.select(e == null ? hi : mi(typeof e == "function" ? e : fi(e)));
}
var _i = Array.prototype.filter;
function vi() {
	return Array.from(this.children);
}
function yi(e) {
	return function() {
		return _i.call(this.children, e);
	};
}
function bi(e) {
	return this.selectAll(e == null ? vi : yi(typeof e == "function" ? e : fi(e)));
}
function xi(e) {
	typeof e != "function" && (e = di(e));
	for (var t = this._groups, n = t.length, r = Array(n), i = 0; i < n; ++i) for (var a = t[i], o = a.length, s = r[i] = [], c, l = 0; l < o; ++l) (c = a[l]) && e.call(c, c.__data__, l, a) && s.push(c);
	return new B(r, this._parents);
}
function Si(e) {
	return Array(e.length);
}
function Ci() {
	return new B(this._enter || this._groups.map(Si), this._parents);
}
function wi(e, t) {
	this.ownerDocument = e.ownerDocument, this.namespaceURI = e.namespaceURI, this._next = null, this._parent = e, this.__data__ = t;
}
wi.prototype = {
	constructor: wi,
	appendChild: function(e) {
		return this._parent.insertBefore(e, this._next);
	},
	insertBefore: function(e, t) {
		return this._parent.insertBefore(e, t);
	},
	querySelector: function(e) {
		return this._parent.querySelector(e);
	},
	querySelectorAll: function(e) {
		return this._parent.querySelectorAll(e);
	}
};
function Ti(e) {
	return function() {
		return e;
	};
}
function Ei(e, t, n, r, i, a) {
	for (var o = 0, s, c = t.length, l = a.length; o < l; ++o) (s = t[o]) ? (s.__data__ = a[o], r[o] = s) : n[o] = new wi(e, a[o]);
	for (; o < c; ++o) (s = t[o]) && (i[o] = s);
}
function Di(e, t, n, r, i, a, o) {
	var s, c, l = /* @__PURE__ */ new Map(), u = t.length, d = a.length, f = Array(u), p;
	for (s = 0; s < u; ++s) (c = t[s]) && (f[s] = p = o.call(c, c.__data__, s, t) + "", l.has(p) ? i[s] = c : l.set(p, c));
	for (s = 0; s < d; ++s) p = o.call(e, a[s], s, a) + "", (c = l.get(p)) ? (r[s] = c, c.__data__ = a[s], l.delete(p)) : n[s] = new wi(e, a[s]);
	for (s = 0; s < u; ++s) (c = t[s]) && l.get(f[s]) === c && (i[s] = c);
}
function Oi(e) {
	return e.__data__;
}
function ki(e, t) {
	if (!arguments.length) return Array.from(this, Oi);
	var n = t ? Di : Ei, r = this._parents, i = this._groups;
	typeof e != "function" && (e = Ti(e));
	for (var a = i.length, o = Array(a), s = Array(a), c = Array(a), l = 0; l < a; ++l) {
		var u = r[l], d = i[l], f = d.length, p = Ai(e.call(u, u && u.__data__, l, r)), m = p.length, h = s[l] = Array(m), g = o[l] = Array(m);
		n(u, d, h, g, c[l] = Array(f), p, t);
		for (var _ = 0, v = 0, y, b; _ < m; ++_) if (y = h[_]) {
			for (_ >= v && (v = _ + 1); !(b = g[v]) && ++v < m;);
			y._next = b || null;
		}
	}
	return o = new B(o, r), o._enter = s, o._exit = c, o;
}
function Ai(e) {
	return typeof e == "object" && "length" in e ? e : Array.from(e);
}
function ji() {
	return new B(this._exit || this._groups.map(Si), this._parents);
}
function Mi(e, t, n) {
	var r = this.enter(), i = this, a = this.exit();
	return typeof e == "function" ? (r = e(r), r &&= r.selection()) : r = r.append(e + ""), t != null && (i = t(i), i &&= i.selection()), n == null ? a.remove() : n(a), r && i ? r.merge(i).order() : i;
}
function Ni(e) {
	for (var t = e.selection ? e.selection() : e, n = this._groups, r = t._groups, i = n.length, a = r.length, o = Math.min(i, a), s = Array(i), c = 0; c < o; ++c) for (var l = n[c], u = r[c], d = l.length, f = s[c] = Array(d), p, m = 0; m < d; ++m) (p = l[m] || u[m]) && (f[m] = p);
	for (; c < i; ++c) s[c] = n[c];
	return new B(s, this._parents);
}
function Pi() {
	for (var e = this._groups, t = -1, n = e.length; ++t < n;) for (var r = e[t], i = r.length - 1, a = r[i], o; --i >= 0;) (o = r[i]) && (a && o.compareDocumentPosition(a) ^ 4 && a.parentNode.insertBefore(o, a), a = o);
	return this;
}
function Fi(e) {
	e ||= Ii;
	function t(t, n) {
		return t && n ? e(t.__data__, n.__data__) : !t - !n;
	}
	for (var n = this._groups, r = n.length, i = Array(r), a = 0; a < r; ++a) {
		for (var o = n[a], s = o.length, c = i[a] = Array(s), l, u = 0; u < s; ++u) (l = o[u]) && (c[u] = l);
		c.sort(t);
	}
	return new B(i, this._parents).order();
}
function Ii(e, t) {
	return e < t ? -1 : e > t ? 1 : e >= t ? 0 : NaN;
}
function Li() {
	var e = arguments[0];
	return arguments[0] = this, e.apply(null, arguments), this;
}
function Ri() {
	return Array.from(this);
}
function zi() {
	for (var e = this._groups, t = 0, n = e.length; t < n; ++t) for (var r = e[t], i = 0, a = r.length; i < a; ++i) {
		var o = r[i];
		if (o) return o;
	}
	return null;
}
function Bi() {
	let e = 0;
	for (let t of this) ++e;
	return e;
}
function Vi() {
	return !this.node();
}
function Hi(e) {
	for (var t = this._groups, n = 0, r = t.length; n < r; ++n) for (var i = t[n], a = 0, o = i.length, s; a < o; ++a) (s = i[a]) && e.call(s, s.__data__, a, i);
	return this;
}
function Ui(e) {
	return function() {
		this.removeAttribute(e);
	};
}
function Wi(e) {
	return function() {
		this.removeAttributeNS(e.space, e.local);
	};
}
function Gi(e, t) {
	return function() {
		this.setAttribute(e, t);
	};
}
function Ki(e, t) {
	return function() {
		this.setAttributeNS(e.space, e.local, t);
	};
}
function qi(e, t) {
	return function() {
		var n = t.apply(this, arguments);
		n == null ? this.removeAttribute(e) : this.setAttribute(e, n);
	};
}
function Ji(e, t) {
	return function() {
		var n = t.apply(this, arguments);
		n == null ? this.removeAttributeNS(e.space, e.local) : this.setAttributeNS(e.space, e.local, n);
	};
}
function Yi(e, t) {
	var n = $r(e);
	if (arguments.length < 2) {
		var r = this.node();
		return n.local ? r.getAttributeNS(n.space, n.local) : r.getAttribute(n);
	}
	return this.each((t == null ? n.local ? Wi : Ui : typeof t == "function" ? n.local ? Ji : qi : n.local ? Ki : Gi)(n, t));
}
function Xi(e) {
	return e.ownerDocument && e.ownerDocument.defaultView || e.document && e || e.defaultView;
}
function Zi(e) {
	return function() {
		this.style.removeProperty(e);
	};
}
function Qi(e, t, n) {
	return function() {
		this.style.setProperty(e, t, n);
	};
}
function $i(e, t, n) {
	return function() {
		var r = t.apply(this, arguments);
		r == null ? this.style.removeProperty(e) : this.style.setProperty(e, r, n);
	};
}
function ea(e, t, n) {
	return arguments.length > 1 ? this.each((t == null ? Zi : typeof t == "function" ? $i : Qi)(e, t, n ?? "")) : ta(this.node(), e);
}
function ta(e, t) {
	return e.style.getPropertyValue(t) || Xi(e).getComputedStyle(e, null).getPropertyValue(t);
}
function na(e) {
	return function() {
		delete this[e];
	};
}
function ra(e, t) {
	return function() {
		this[e] = t;
	};
}
function ia(e, t) {
	return function() {
		var n = t.apply(this, arguments);
		n == null ? delete this[e] : this[e] = n;
	};
}
function aa(e, t) {
	return arguments.length > 1 ? this.each((t == null ? na : typeof t == "function" ? ia : ra)(e, t)) : this.node()[e];
}
function oa(e) {
	return e.trim().split(/^|\s+/);
}
function sa(e) {
	return e.classList || new ca(e);
}
function ca(e) {
	this._node = e, this._names = oa(e.getAttribute("class") || "");
}
ca.prototype = {
	add: function(e) {
		this._names.indexOf(e) < 0 && (this._names.push(e), this._node.setAttribute("class", this._names.join(" ")));
	},
	remove: function(e) {
		var t = this._names.indexOf(e);
		t >= 0 && (this._names.splice(t, 1), this._node.setAttribute("class", this._names.join(" ")));
	},
	contains: function(e) {
		return this._names.indexOf(e) >= 0;
	}
};
function la(e, t) {
	for (var n = sa(e), r = -1, i = t.length; ++r < i;) n.add(t[r]);
}
function ua(e, t) {
	for (var n = sa(e), r = -1, i = t.length; ++r < i;) n.remove(t[r]);
}
function da(e) {
	return function() {
		la(this, e);
	};
}
function fa(e) {
	return function() {
		ua(this, e);
	};
}
function pa(e, t) {
	return function() {
		(t.apply(this, arguments) ? la : ua)(this, e);
	};
}
function ma(e, t) {
	var n = oa(e + "");
	if (arguments.length < 2) {
		for (var r = sa(this.node()), i = -1, a = n.length; ++i < a;) if (!r.contains(n[i])) return !1;
		return !0;
	}
	return this.each((typeof t == "function" ? pa : t ? da : fa)(n, t));
}
function ha() {
	this.textContent = "";
}
function ga(e) {
	return function() {
		this.textContent = e;
	};
}
function _a(e) {
	return function() {
		var t = e.apply(this, arguments);
		this.textContent = t ?? "";
	};
}
function va(e) {
	return arguments.length ? this.each(e == null ? ha : (typeof e == "function" ? _a : ga)(e)) : this.node().textContent;
}
function ya() {
	this.innerHTML = "";
}
function ba(e) {
	return function() {
		this.innerHTML = e;
	};
}
function xa(e) {
	return function() {
		var t = e.apply(this, arguments);
		this.innerHTML = t ?? "";
	};
}
function Sa(e) {
	return arguments.length ? this.each(e == null ? ya : (typeof e == "function" ? xa : ba)(e)) : this.node().innerHTML;
}
function Ca() {
	this.nextSibling && this.parentNode.appendChild(this);
}
function wa() {
	return this.each(Ca);
}
function Ta() {
	this.previousSibling && this.parentNode.insertBefore(this, this.parentNode.firstChild);
}
function Ea() {
	return this.each(Ta);
}
function Da(e) {
	var t = typeof e == "function" ? e : ni(e);
	return this.select(function() {
		return this.appendChild(t.apply(this, arguments));
	});
}
function Oa() {
	return null;
}
function ka(e, t) {
	var n = typeof e == "function" ? e : ni(e), r = t == null ? Oa : typeof t == "function" ? t : ii(t);
	return this.select(function() {
		return this.insertBefore(n.apply(this, arguments), r.apply(this, arguments) || null);
	});
}
function Aa() {
	var e = this.parentNode;
	e && e.removeChild(this);
}
function ja() {
	return this.each(Aa);
}
function Ma() {
	var e = this.cloneNode(!1), t = this.parentNode;
	return t ? t.insertBefore(e, this.nextSibling) : e;
}
function Na() {
	var e = this.cloneNode(!0), t = this.parentNode;
	return t ? t.insertBefore(e, this.nextSibling) : e;
}
function Pa(e) {
	return this.select(e ? Na : Ma);
}
function Fa(e) {
	return arguments.length ? this.property("__data__", e) : this.node().__data__;
}
function Ia(e) {
	return function(t) {
		e.call(this, t, this.__data__);
	};
}
function La(e) {
	return e.trim().split(/^|\s+/).map(function(e) {
		var t = "", n = e.indexOf(".");
		return n >= 0 && (t = e.slice(n + 1), e = e.slice(0, n)), {
			type: e,
			name: t
		};
	});
}
function Ra(e) {
	return function() {
		var t = this.__on;
		if (t) {
			for (var n = 0, r = -1, i = t.length, a; n < i; ++n) a = t[n], (!e.type || a.type === e.type) && a.name === e.name ? this.removeEventListener(a.type, a.listener, a.options) : t[++r] = a;
			++r ? t.length = r : delete this.__on;
		}
	};
}
function za(e, t, n) {
	return function() {
		var r = this.__on, i, a = Ia(t);
		if (r) {
			for (var o = 0, s = r.length; o < s; ++o) if ((i = r[o]).type === e.type && i.name === e.name) {
				this.removeEventListener(i.type, i.listener, i.options), this.addEventListener(i.type, i.listener = a, i.options = n), i.value = t;
				return;
			}
		}
		this.addEventListener(e.type, a, n), i = {
			type: e.type,
			name: e.name,
			value: t,
			listener: a,
			options: n
		}, r ? r.push(i) : this.__on = [i];
	};
}
function Ba(e, t, n) {
	var r = La(e + ""), i, a = r.length, o;
	if (arguments.length < 2) {
		var s = this.node().__on;
		if (s) {
			for (var c = 0, l = s.length, u; c < l; ++c) for (i = 0, u = s[c]; i < a; ++i) if ((o = r[i]).type === u.type && o.name === u.name) return u.value;
		}
	} else {
		for (s = t ? za : Ra, i = 0; i < a; ++i) this.each(s(r[i], t, n));
		return this;
	}
}
function Va(e, t, n) {
	var r = Xi(e), i = r.CustomEvent;
	typeof i == "function" ? i = new i(t, n) : (i = r.document.createEvent("Event"), n ? (i.initEvent(t, n.bubbles, n.cancelable), i.detail = n.detail) : i.initEvent(t, !1, !1)), e.dispatchEvent(i);
}
function Ha(e, t) {
	return function() {
		return Va(this, e, t);
	};
}
function Ua(e, t) {
	return function() {
		return Va(this, e, t.apply(this, arguments));
	};
}
function Wa(e, t) {
	return this.each((typeof t == "function" ? Ua : Ha)(e, t));
}
function* Ga() {
	for (var e = this._groups, t = 0, n = e.length; t < n; ++t) for (var r = e[t], i = 0, a = r.length, o; i < a; ++i) (o = r[i]) && (yield o);
}
var Ka = [null];
function B(e, t) {
	this._groups = e, this._parents = t;
}
function qa() {
	return new B([[document.documentElement]], Ka);
}
function Ja() {
	return this;
}
B.prototype = qa.prototype = {
	constructor: B,
	select: ai,
	selectAll: ui,
	selectChild: gi,
	selectChildren: bi,
	filter: xi,
	data: ki,
	enter: Ci,
	exit: ji,
	join: Mi,
	merge: Ni,
	selection: Ja,
	order: Pi,
	sort: Fi,
	call: Li,
	nodes: Ri,
	node: zi,
	size: Bi,
	empty: Vi,
	each: Hi,
	attr: Yi,
	style: ea,
	property: aa,
	classed: ma,
	text: va,
	html: Sa,
	raise: wa,
	lower: Ea,
	append: Da,
	insert: ka,
	remove: ja,
	clone: Pa,
	datum: Fa,
	on: Ba,
	dispatch: Wa,
	[Symbol.iterator]: Ga
};
function V(e) {
	return typeof e == "string" ? new B([[document.querySelector(e)]], [document.documentElement]) : new B([[e]], Ka);
}
var Ya = 0;
function Xa() {
	return new Za();
}
function Za() {
	this._ = "@" + (++Ya).toString(36);
}
Za.prototype = Xa.prototype = {
	constructor: Za,
	get: function(e) {
		for (var t = this._; !(t in e);) if (!(e = e.parentNode)) return;
		return e[t];
	},
	set: function(e, t) {
		return e[this._] = t;
	},
	remove: function(e) {
		return this._ in e && delete e[this._];
	},
	toString: function() {
		return this._;
	}
};
function Qa(e) {
	let t;
	for (; t = e.sourceEvent;) e = t;
	return e;
}
function $a(e, t) {
	if (e = Qa(e), t === void 0 && (t = e.currentTarget), t) {
		var n = t.ownerSVGElement || t;
		if (n.createSVGPoint) {
			var r = n.createSVGPoint();
			return r.x = e.clientX, r.y = e.clientY, r = r.matrixTransform(t.getScreenCTM().inverse()), [r.x, r.y];
		}
		if (t.getBoundingClientRect) {
			var i = t.getBoundingClientRect();
			return [e.clientX - i.left - t.clientLeft, e.clientY - i.top - t.clientTop];
		}
	}
	return [e.pageX, e.pageY];
}
// node_modules/d3-dispatch/dist/d3-dispatch.mjs
var eo = { value: () => {} };
function to() {
	for (var e = 0, t = arguments.length, n = {}, r; e < t; ++e) {
		if (!(r = arguments[e] + "") || r in n || /[\s.]/.test(r)) throw Error("illegal type: " + r);
		n[r] = [];
	}
	return new no(n);
}
function no(e) {
	this._ = e;
}
function ro(e, t) {
	return e.trim().split(/^|\s+/).map(function(e) {
		var n = "", r = e.indexOf(".");
		if (r >= 0 && (n = e.slice(r + 1), e = e.slice(0, r)), e && !t.hasOwnProperty(e)) throw Error("unknown type: " + e);
		return {
			type: e,
			name: n
		};
	});
}
no.prototype = to.prototype = {
	constructor: no,
	on: function(e, t) {
		var n = this._, r = ro(e + "", n), i, a = -1, o = r.length;
		if (arguments.length < 2) {
			for (; ++a < o;) if ((i = (e = r[a]).type) && (i = io(n[i], e.name))) return i;
		} else {
			if (t != null && typeof t != "function") throw Error("invalid callback: " + t);
			for (; ++a < o;) if (i = (e = r[a]).type) n[i] = ao(n[i], e.name, t);
			else if (t == null) for (i in n) n[i] = ao(n[i], e.name, null);
			return this;
		}
	},
	copy: function() {
		var e = {}, t = this._;
		for (var n in t) e[n] = t[n].slice();
		return new no(e);
	},
	call: function(e, t) {
		if ((i = arguments.length - 2) > 0) for (var n = Array(i), r = 0, i, a; r < i; ++r) n[r] = arguments[r + 2];
		if (!this._.hasOwnProperty(e)) throw Error("unknown type: " + e);
		for (a = this._[e], r = 0, i = a.length; r < i; ++r) a[r].value.apply(t, n);
	},
	apply: function(e, t, n) {
		if (!this._.hasOwnProperty(e)) throw Error("unknown type: " + e);
		for (var r = this._[e], i = 0, a = r.length; i < a; ++i) r[i].value.apply(t, n);
	}
};
function io(e, t) {
	for (var n = 0, r = e.length, i; n < r; ++n) if ((i = e[n]).name === t) return i.value;
}
function ao(e, t, n) {
	for (var r = 0, i = e.length; r < i; ++r) if (e[r].name === t) {
		e[r] = eo, e = e.slice(0, r).concat(e.slice(r + 1));
		break;
	}
	return n != null && e.push({
		name: t,
		value: n
	}), e;
}
// node_modules/d3-drag/dist/d3-drag.mjs
var oo = {
	capture: !0,
	passive: !1
};
function so(e) {
	e.preventDefault(), e.stopImmediatePropagation();
}
function co(e) {
	var t = e.document.documentElement, n = V(e).on("dragstart.drag", so, oo);
	"onselectstart" in t ? n.on("selectstart.drag", so, oo) : (t.__noselect = t.style.MozUserSelect, t.style.MozUserSelect = "none");
}
function lo(e, t) {
	var n = e.document.documentElement, r = V(e).on("dragstart.drag", null);
	t && (r.on("click.drag", so, oo), setTimeout(function() {
		r.on("click.drag", null);
	}, 0)), "onselectstart" in n ? r.on("selectstart.drag", null) : (n.style.MozUserSelect = n.__noselect, delete n.__noselect);
}
function uo(e, { sourceEvent: t, subject: n, target: r, identifier: i, active: a, x: o, y: s, dx: c, dy: l, dispatch: u }) {
	Object.defineProperties(this, {
		type: {
			value: e,
			enumerable: !0,
			configurable: !0
		},
		sourceEvent: {
			value: t,
			enumerable: !0,
			configurable: !0
		},
		subject: {
			value: n,
			enumerable: !0,
			configurable: !0
		},
		target: {
			value: r,
			enumerable: !0,
			configurable: !0
		},
		identifier: {
			value: i,
			enumerable: !0,
			configurable: !0
		},
		active: {
			value: a,
			enumerable: !0,
			configurable: !0
		},
		x: {
			value: o,
			enumerable: !0,
			configurable: !0
		},
		y: {
			value: s,
			enumerable: !0,
			configurable: !0
		},
		dx: {
			value: c,
			enumerable: !0,
			configurable: !0
		},
		dy: {
			value: l,
			enumerable: !0,
			configurable: !0
		},
		_: { value: u }
	});
}
uo.prototype.on = function() {
	var e = this._.on.apply(this._, arguments);
	return e === this._ ? this : e;
};
// node_modules/d3-timer/dist/d3-timer.mjs
var fo = 0, po = 0, mo = 0, ho = 1e3, go, _o, vo = 0, yo = 0, bo = 0, xo = typeof performance == "object" && performance.now ? performance : Date, So = typeof window == "object" && window.requestAnimationFrame ? window.requestAnimationFrame.bind(window) : function(e) {
	setTimeout(e, 17);
};
function Co() {
	return yo ||= (So(wo), xo.now() + bo);
}
function wo() {
	yo = 0;
}
function To() {
	this._call = this._time = this._next = null;
}
To.prototype = Eo.prototype = {
	constructor: To,
	restart: function(e, t, n) {
		if (typeof e != "function") throw TypeError("callback is not a function");
		n = (n == null ? Co() : +n) + (t == null ? 0 : +t), !this._next && _o !== this && (_o ? _o._next = this : go = this, _o = this), this._call = e, this._time = n, jo();
	},
	stop: function() {
		this._call && (this._call = null, this._time = Infinity, jo());
	}
};
function Eo(e, t, n) {
	var r = new To();
	return r.restart(e, t, n), r;
}
function Do() {
	Co(), ++fo;
	for (var e = go, t; e;) (t = yo - e._time) >= 0 && e._call.call(void 0, t), e = e._next;
	--fo;
}
function Oo() {
	yo = (vo = xo.now()) + bo, fo = po = 0;
	try {
		Do();
	} finally {
		fo = 0, Ao(), yo = 0;
	}
}
function ko() {
	var e = xo.now(), t = e - vo;
	t > ho && (bo -= t, vo = e);
}
function Ao() {
	for (var e, t = go, n, r = Infinity; t;) t._call ? (r > t._time && (r = t._time), e = t, t = t._next) : (n = t._next, t._next = null, t = e ? e._next = n : go = n);
	_o = e, jo(r);
}
function jo(e) {
	fo || (po &&= clearTimeout(po), e - yo > 24 ? (e < Infinity && (po = setTimeout(Oo, Math.ceil(e - xo.now() - bo) + 1)), mo &&= clearInterval(mo)) : (mo ||= (vo = xo.now(), setInterval(ko, ho)), fo = 1, So(Oo)));
}
function Mo(e, t, n) {
	var r = new To();
	return t = t == null ? 0 : +t, r.restart((n) => {
		r.stop(), e(n + t);
	}, t, n), r;
}
// node_modules/d3-ease/dist/d3-ease.mjs
function No(e) {
	return ((e *= 2) <= 1 ? e * e * e : (e -= 2) * e * e + 2) / 2;
}
var Po = 3;
(function e(t) {
	t = +t;
	function n(e) {
		return e ** +t;
	}
	return n.exponent = e, n;
})(Po), (function e(t) {
	t = +t;
	function n(e) {
		return 1 - (1 - e) ** t;
	}
	return n.exponent = e, n;
})(Po), (function e(t) {
	t = +t;
	function n(e) {
		return ((e *= 2) <= 1 ? e ** +t : 2 - (2 - e) ** t) / 2;
	}
	return n.exponent = e, n;
})(Po);
function Fo(e) {
	return (2 ** (-10 * e) - .0009765625) * 1.0009775171065494;
}
var Io = 4 / 11;
1 / Io / Io;
var Lo = 1.70158;
(function e(t) {
	t = +t;
	function n(e) {
		return (e = +e) * e * (t * (e - 1) + e);
	}
	return n.overshoot = e, n;
})(Lo), (function e(t) {
	t = +t;
	function n(e) {
		return --e * e * ((e + 1) * t + e) + 1;
	}
	return n.overshoot = e, n;
})(Lo), (function e(t) {
	t = +t;
	function n(e) {
		return ((e *= 2) < 1 ? e * e * ((t + 1) * e - t) : (e -= 2) * e * ((t + 1) * e + t) + 2) / 2;
	}
	return n.overshoot = e, n;
})(Lo);
var Ro = 2 * Math.PI, zo = 1, Bo = .3;
(function e(t, n) {
	var r = Math.asin(1 / (t = Math.max(1, t))) * (n /= Ro);
	function i(e) {
		return t * Fo(- --e) * Math.sin((r - e) / n);
	}
	return i.amplitude = function(t) {
		return e(t, n * Ro);
	}, i.period = function(n) {
		return e(t, n);
	}, i;
})(zo, Bo), (function e(t, n) {
	var r = Math.asin(1 / (t = Math.max(1, t))) * (n /= Ro);
	function i(e) {
		return 1 - t * Fo(e = +e) * Math.sin((e + r) / n);
	}
	return i.amplitude = function(t) {
		return e(t, n * Ro);
	}, i.period = function(n) {
		return e(t, n);
	}, i;
})(zo, Bo), (function e(t, n) {
	var r = Math.asin(1 / (t = Math.max(1, t))) * (n /= Ro);
	function i(e) {
		return ((e = e * 2 - 1) < 0 ? t * Fo(-e) * Math.sin((r - e) / n) : 2 - t * Fo(e) * Math.sin((r + e) / n)) / 2;
	}
	return i.amplitude = function(t) {
		return e(t, n * Ro);
	}, i.period = function(n) {
		return e(t, n);
	}, i;
})(zo, Bo);
// node_modules/d3-transition/dist/d3-transition.mjs
var Vo = to("start", "end", "cancel", "interrupt"), Ho = [], Uo = 0, Wo = 1, Go = 2, Ko = 3, qo = 4, Jo = 5, Yo = 6;
function Xo(e, t, n, r, i, a) {
	var o = e.__transition;
	if (!o) e.__transition = {};
	else if (n in o) return;
	Qo(e, n, {
		name: t,
		index: r,
		group: i,
		on: Vo,
		tween: Ho,
		time: a.time,
		delay: a.delay,
		duration: a.duration,
		ease: a.ease,
		timer: null,
		state: Uo
	});
}
function Zo(e, t) {
	var n = U(e, t);
	if (n.state > Uo) throw Error("too late; already scheduled");
	return n;
}
function H(e, t) {
	var n = U(e, t);
	if (n.state > Ko) throw Error("too late; already running");
	return n;
}
function U(e, t) {
	var n = e.__transition;
	if (!n || !(n = n[t])) throw Error("transition not found");
	return n;
}
function Qo(e, t, n) {
	var r = e.__transition, i;
	r[t] = n, n.timer = Eo(a, 0, n.time);
	function a(e) {
		n.state = Wo, n.timer.restart(o, n.delay, n.time), n.delay <= e && o(e - n.delay);
	}
	function o(a) {
		var l, u, d, f;
		if (n.state !== Wo) return c();
		for (l in r) if (f = r[l], f.name === n.name) {
			if (f.state === Ko) return Mo(o);
			f.state === qo ? (f.state = Yo, f.timer.stop(), f.on.call("interrupt", e, e.__data__, f.index, f.group), delete r[l]) : +l < t && (f.state = Yo, f.timer.stop(), f.on.call("cancel", e, e.__data__, f.index, f.group), delete r[l]);
		}
		if (Mo(function() {
			n.state === Ko && (n.state = qo, n.timer.restart(s, n.delay, n.time), s(a));
		}), n.state = Go, n.on.call("start", e, e.__data__, n.index, n.group), n.state === Go) {
			for (n.state = Ko, i = Array(d = n.tween.length), l = 0, u = -1; l < d; ++l) (f = n.tween[l].value.call(e, e.__data__, n.index, n.group)) && (i[++u] = f);
			i.length = u + 1;
		}
	}
	function s(t) {
		for (var r = t < n.duration ? n.ease.call(null, t / n.duration) : (n.timer.restart(c), n.state = Jo, 1), a = -1, o = i.length; ++a < o;) i[a].call(e, r);
		n.state === Jo && (n.on.call("end", e, e.__data__, n.index, n.group), c());
	}
	function c() {
		for (var i in n.state = Yo, n.timer.stop(), delete r[t], r) return;
		delete e.__transition;
	}
}
function $o(e, t) {
	var n = e.__transition, r, i, a = !0, o;
	if (n) {
		for (o in t = t == null ? null : t + "", n) (r = n[o]).name === t ? (i = r.state > Go && r.state < Jo, r.state = Yo, r.timer.stop(), r.on.call(i ? "interrupt" : "cancel", e, e.__data__, r.index, r.group), delete n[o]) : a = !1;
		a && delete e.__transition;
	}
}
function es(e) {
	return this.each(function() {
		$o(this, e);
	});
}
function ts(e, t) {
	var n, r;
	return function() {
		var i = H(this, e), a = i.tween;
		if (a !== n) {
			r = n = a;
			for (var o = 0, s = r.length; o < s; ++o) if (r[o].name === t) {
				r = r.slice(), r.splice(o, 1);
				break;
			}
		}
		i.tween = r;
	};
}
function ns(e, t, n) {
	var r, i;
	if (typeof n != "function") throw Error();
	return function() {
		var a = H(this, e), o = a.tween;
		if (o !== r) {
			i = (r = o).slice();
			for (var s = {
				name: t,
				value: n
			}, c = 0, l = i.length; c < l; ++c) if (i[c].name === t) {
				i[c] = s;
				break;
			}
			c === l && i.push(s);
		}
		a.tween = i;
	};
}
function rs(e, t) {
	var n = this._id;
	if (e += "", arguments.length < 2) {
		for (var r = U(this.node(), n).tween, i = 0, a = r.length, o; i < a; ++i) if ((o = r[i]).name === e) return o.value;
		return null;
	}
	return this.each((t == null ? ts : ns)(n, e, t));
}
function is(e, t, n) {
	var r = e._id;
	return e.each(function() {
		var e = H(this, r);
		(e.value ||= {})[t] = n.apply(this, arguments);
	}), function(e) {
		return U(e, r).value[t];
	};
}
function as(e, t) {
	var n;
	return (typeof t == "number" ? N : t instanceof ge ? gt : (n = ge(t)) ? (t = n, gt) : Ot)(e, t);
}
function os(e) {
	return function() {
		this.removeAttribute(e);
	};
}
function ss(e) {
	return function() {
		this.removeAttributeNS(e.space, e.local);
	};
}
function cs(e, t, n) {
	var r, i = n + "", a;
	return function() {
		var o = this.getAttribute(e);
		return o === i ? null : o === r ? a : a = t(r = o, n);
	};
}
function ls(e, t, n) {
	var r, i = n + "", a;
	return function() {
		var o = this.getAttributeNS(e.space, e.local);
		return o === i ? null : o === r ? a : a = t(r = o, n);
	};
}
function us(e, t, n) {
	var r, i, a;
	return function() {
		var o, s = n(this), c;
		return s == null ? void this.removeAttribute(e) : (o = this.getAttribute(e), c = s + "", o === c ? null : o === r && c === i ? a : (i = c, a = t(r = o, s)));
	};
}
function ds(e, t, n) {
	var r, i, a;
	return function() {
		var o, s = n(this), c;
		return s == null ? void this.removeAttributeNS(e.space, e.local) : (o = this.getAttributeNS(e.space, e.local), c = s + "", o === c ? null : o === r && c === i ? a : (i = c, a = t(r = o, s)));
	};
}
function fs(e, t) {
	var n = $r(e), r = n === "transform" ? zt : as;
	return this.attrTween(e, typeof t == "function" ? (n.local ? ds : us)(n, r, is(this, "attr." + e, t)) : t == null ? (n.local ? ss : os)(n) : (n.local ? ls : cs)(n, r, t));
}
function ps(e, t) {
	return function(n) {
		this.setAttribute(e, t.call(this, n));
	};
}
function ms(e, t) {
	return function(n) {
		this.setAttributeNS(e.space, e.local, t.call(this, n));
	};
}
function hs(e, t) {
	var n, r;
	function i() {
		var i = t.apply(this, arguments);
		return i !== r && (n = (r = i) && ms(e, i)), n;
	}
	return i._value = t, i;
}
function gs(e, t) {
	var n, r;
	function i() {
		var i = t.apply(this, arguments);
		return i !== r && (n = (r = i) && ps(e, i)), n;
	}
	return i._value = t, i;
}
function _s(e, t) {
	var n = "attr." + e;
	if (arguments.length < 2) return (n = this.tween(n)) && n._value;
	if (t == null) return this.tween(n, null);
	if (typeof t != "function") throw Error();
	var r = $r(e);
	return this.tween(n, (r.local ? hs : gs)(r, t));
}
function vs(e, t) {
	return function() {
		Zo(this, e).delay = +t.apply(this, arguments);
	};
}
function ys(e, t) {
	return t = +t, function() {
		Zo(this, e).delay = t;
	};
}
function bs(e) {
	var t = this._id;
	return arguments.length ? this.each((typeof e == "function" ? vs : ys)(t, e)) : U(this.node(), t).delay;
}
function xs(e, t) {
	return function() {
		H(this, e).duration = +t.apply(this, arguments);
	};
}
function Ss(e, t) {
	return t = +t, function() {
		H(this, e).duration = t;
	};
}
function Cs(e) {
	var t = this._id;
	return arguments.length ? this.each((typeof e == "function" ? xs : Ss)(t, e)) : U(this.node(), t).duration;
}
function ws(e, t) {
	if (typeof t != "function") throw Error();
	return function() {
		H(this, e).ease = t;
	};
}
function Ts(e) {
	var t = this._id;
	return arguments.length ? this.each(ws(t, e)) : U(this.node(), t).ease;
}
function Es(e, t) {
	return function() {
		var n = t.apply(this, arguments);
		if (typeof n != "function") throw Error();
		H(this, e).ease = n;
	};
}
function Ds(e) {
	if (typeof e != "function") throw Error();
	return this.each(Es(this._id, e));
}
function Os(e) {
	typeof e != "function" && (e = di(e));
	for (var t = this._groups, n = t.length, r = Array(n), i = 0; i < n; ++i) for (var a = t[i], o = a.length, s = r[i] = [], c, l = 0; l < o; ++l) (c = a[l]) && e.call(c, c.__data__, l, a) && s.push(c);
	return new W(r, this._parents, this._name, this._id);
}
function ks(e) {
	if (e._id !== this._id) throw Error();
	for (var t = this._groups, n = e._groups, r = t.length, i = n.length, a = Math.min(r, i), o = Array(r), s = 0; s < a; ++s) for (var c = t[s], l = n[s], u = c.length, d = o[s] = Array(u), f, p = 0; p < u; ++p) (f = c[p] || l[p]) && (d[p] = f);
	for (; s < r; ++s) o[s] = t[s];
	return new W(o, this._parents, this._name, this._id);
}
function As(e) {
	return (e + "").trim().split(/^|\s+/).every(function(e) {
		var t = e.indexOf(".");
		return t >= 0 && (e = e.slice(0, t)), !e || e === "start";
	});
}
function js(e, t, n) {
	var r, i, a = As(t) ? Zo : H;
	return function() {
		var o = a(this, e), s = o.on;
		s !== r && (i = (r = s).copy()).on(t, n), o.on = i;
	};
}
function Ms(e, t) {
	var n = this._id;
	return arguments.length < 2 ? U(this.node(), n).on.on(e) : this.each(js(n, e, t));
}
function Ns(e) {
	return function() {
		var t = this.parentNode;
		for (var n in this.__transition) if (+n !== e) return;
		t && t.removeChild(this);
	};
}
function Ps() {
	return this.on("end.remove", Ns(this._id));
}
function Fs(e) {
	var t = this._name, n = this._id;
	typeof e != "function" && (e = ii(e));
	for (var r = this._groups, i = r.length, a = Array(i), o = 0; o < i; ++o) for (var s = r[o], c = s.length, l = a[o] = Array(c), u, d, f = 0; f < c; ++f) (u = s[f]) && (d = e.call(u, u.__data__, f, s)) && ("__data__" in u && (d.__data__ = u.__data__), l[f] = d, Xo(l[f], t, n, f, l, U(u, n)));
	return new W(a, this._parents, t, n);
}
function Is(e) {
	var t = this._name, n = this._id;
	typeof e != "function" && (e = ci(e));
	for (var r = this._groups, i = r.length, a = [], o = [], s = 0; s < i; ++s) for (var c = r[s], l = c.length, u, d = 0; d < l; ++d) if (u = c[d]) {
		for (var f = e.call(u, u.__data__, d, c), p, m = U(u, n), h = 0, g = f.length; h < g; ++h) (p = f[h]) && Xo(p, t, n, h, f, m);
		a.push(f), o.push(u);
	}
	return new W(a, o, t, n);
}
var Ls = qa.prototype.constructor;
function Rs() {
	return new Ls(this._groups, this._parents);
}
function zs(e, t) {
	var n, r, i;
	return function() {
		var a = ta(this, e), o = (this.style.removeProperty(e), ta(this, e));
		return a === o ? null : a === n && o === r ? i : i = t(n = a, r = o);
	};
}
function Bs(e) {
	return function() {
		this.style.removeProperty(e);
	};
}
function Vs(e, t, n) {
	var r, i = n + "", a;
	return function() {
		var o = ta(this, e);
		return o === i ? null : o === r ? a : a = t(r = o, n);
	};
}
function Hs(e, t, n) {
	var r, i, a;
	return function() {
		var o = ta(this, e), s = n(this), c = s + "";
		return s ?? (c = s = (this.style.removeProperty(e), ta(this, e))), o === c ? null : o === r && c === i ? a : (i = c, a = t(r = o, s));
	};
}
function Us(e, t) {
	var n, r, i, a = "style." + t, o = "end." + a, s;
	return function() {
		var c = H(this, e), l = c.on, u = c.value[a] == null ? s ||= Bs(t) : void 0;
		(l !== n || i !== u) && (r = (n = l).copy()).on(o, i = u), c.on = r;
	};
}
function Ws(e, t, n) {
	var r = (e += "") == "transform" ? Rt : as;
	return t == null ? this.styleTween(e, zs(e, r)).on("end.style." + e, Bs(e)) : typeof t == "function" ? this.styleTween(e, Hs(e, r, is(this, "style." + e, t))).each(Us(this._id, e)) : this.styleTween(e, Vs(e, r, t), n).on("end.style." + e, null);
}
function Gs(e, t, n) {
	return function(r) {
		this.style.setProperty(e, t.call(this, r), n);
	};
}
function Ks(e, t, n) {
	var r, i;
	function a() {
		var a = t.apply(this, arguments);
		return a !== i && (r = (i = a) && Gs(e, a, n)), r;
	}
	return a._value = t, a;
}
function qs(e, t, n) {
	var r = "style." + (e += "");
	if (arguments.length < 2) return (r = this.tween(r)) && r._value;
	if (t == null) return this.tween(r, null);
	if (typeof t != "function") throw Error();
	return this.tween(r, Ks(e, t, n ?? ""));
}
function Js(e) {
	return function() {
		this.textContent = e;
	};
}
function Ys(e) {
	return function() {
		var t = e(this);
		this.textContent = t ?? "";
	};
}
function Xs(e) {
	return this.tween("text", typeof e == "function" ? Ys(is(this, "text", e)) : Js(e == null ? "" : e + ""));
}
function Zs(e) {
	return function(t) {
		this.textContent = e.call(this, t);
	};
}
function Qs(e) {
	var t, n;
	function r() {
		var r = e.apply(this, arguments);
		return r !== n && (t = (n = r) && Zs(r)), t;
	}
	return r._value = e, r;
}
function $s(e) {
	var t = "text";
	if (arguments.length < 1) return (t = this.tween(t)) && t._value;
	if (e == null) return this.tween(t, null);
	if (typeof e != "function") throw Error();
	return this.tween(t, Qs(e));
}
function ec() {
	for (var e = this._name, t = this._id, n = rc(), r = this._groups, i = r.length, a = 0; a < i; ++a) for (var o = r[a], s = o.length, c, l = 0; l < s; ++l) if (c = o[l]) {
		var u = U(c, t);
		Xo(c, e, n, l, o, {
			time: u.time + u.delay + u.duration,
			delay: 0,
			duration: u.duration,
			ease: u.ease
		});
	}
	return new W(r, this._parents, e, n);
}
function tc() {
	var e, t, n = this, r = n._id, i = n.size();
	return new Promise(function(a, o) {
		var s = { value: o }, c = { value: function() {
			--i === 0 && a();
		} };
		n.each(function() {
			var n = H(this, r), i = n.on;
			i !== e && (t = (e = i).copy(), t._.cancel.push(s), t._.interrupt.push(s), t._.end.push(c)), n.on = t;
		}), i === 0 && a();
	});
}
var nc = 0;
function W(e, t, n, r) {
	this._groups = e, this._parents = t, this._name = n, this._id = r;
}
function rc() {
	return ++nc;
}
var G = qa.prototype;
W.prototype = {
	constructor: W,
	select: Fs,
	selectAll: Is,
	selectChild: G.selectChild,
	selectChildren: G.selectChildren,
	filter: Os,
	merge: ks,
	selection: Rs,
	transition: ec,
	call: G.call,
	nodes: G.nodes,
	node: G.node,
	size: G.size,
	empty: G.empty,
	each: G.each,
	on: Ms,
	attr: fs,
	attrTween: _s,
	style: Ws,
	styleTween: qs,
	text: Xs,
	textTween: $s,
	remove: Ps,
	tween: rs,
	delay: bs,
	duration: Cs,
	ease: Ts,
	easeVarying: Ds,
	end: tc,
	[Symbol.iterator]: G[Symbol.iterator]
};
var ic = {
	time: null,
	delay: 0,
	duration: 250,
	ease: No
};
function ac(e, t) {
	for (var n; !(n = e.__transition) || !(n = n[t]);) if (!(e = e.parentNode)) throw Error(`transition ${t} not found`);
	return n;
}
function oc(e) {
	var t, n;
	e instanceof W ? (t = e._id, e = e._name) : (t = rc(), (n = ic).time = Co(), e = e == null ? null : e + "");
	for (var r = this._groups, i = r.length, a = 0; a < i; ++a) for (var o = r[a], s = o.length, c, l = 0; l < s; ++l) (c = o[l]) && Xo(c, e, t, l, o, n || ac(c, t));
	return new W(r, this._parents, e, t);
}
qa.prototype.interrupt = es, qa.prototype.transition = oc;
// node_modules/d3-zoom/dist/d3-zoom.mjs
var sc = (e) => () => e;
function cc(e, { sourceEvent: t, target: n, transform: r, dispatch: i }) {
	Object.defineProperties(this, {
		type: {
			value: e,
			enumerable: !0,
			configurable: !0
		},
		sourceEvent: {
			value: t,
			enumerable: !0,
			configurable: !0
		},
		target: {
			value: n,
			enumerable: !0,
			configurable: !0
		},
		transform: {
			value: r,
			enumerable: !0,
			configurable: !0
		},
		_: { value: i }
	});
}
function K(e, t, n) {
	this.k = e, this.x = t, this.y = n;
}
K.prototype = {
	constructor: K,
	scale: function(e) {
		return e === 1 ? this : new K(this.k * e, this.x, this.y);
	},
	translate: function(e, t) {
		return e === 0 & t === 0 ? this : new K(this.k, this.x + this.k * e, this.y + this.k * t);
	},
	apply: function(e) {
		return [e[0] * this.k + this.x, e[1] * this.k + this.y];
	},
	applyX: function(e) {
		return e * this.k + this.x;
	},
	applyY: function(e) {
		return e * this.k + this.y;
	},
	invert: function(e) {
		return [(e[0] - this.x) / this.k, (e[1] - this.y) / this.k];
	},
	invertX: function(e) {
		return (e - this.x) / this.k;
	},
	invertY: function(e) {
		return (e - this.y) / this.k;
	},
	rescaleX: function(e) {
		return e.copy().domain(e.range().map(this.invertX, this).map(e.invert, e));
	},
	rescaleY: function(e) {
		return e.copy().domain(e.range().map(this.invertY, this).map(e.invert, e));
	},
	toString: function() {
		return "translate(" + this.x + "," + this.y + ") scale(" + this.k + ")";
	}
};
var lc = new K(1, 0, 0);
uc.prototype = K.prototype;
function uc(e) {
	for (; !e.__zoom;) if (!(e = e.parentNode)) return lc;
	return e.__zoom;
}
function dc(e) {
	e.stopImmediatePropagation();
}
function fc(e) {
	e.preventDefault(), e.stopImmediatePropagation();
}
function pc(e) {
	return (!e.ctrlKey || e.type === "wheel") && !e.button;
}
function mc() {
	var e = this;
	return e instanceof SVGElement ? (e = e.ownerSVGElement || e, e.hasAttribute("viewBox") ? (e = e.viewBox.baseVal, [[e.x, e.y], [e.x + e.width, e.y + e.height]]) : [[0, 0], [e.width.baseVal.value, e.height.baseVal.value]]) : [[0, 0], [e.clientWidth, e.clientHeight]];
}
function hc() {
	return this.__zoom || lc;
}
function gc(e) {
	return -e.deltaY * (e.deltaMode === 1 ? .05 : e.deltaMode ? 1 : .002) * (e.ctrlKey ? 10 : 1);
}
function _c() {
	return navigator.maxTouchPoints || "ontouchstart" in this;
}
function vc(e, t, n) {
	var r = e.invertX(t[0][0]) - n[0][0], i = e.invertX(t[1][0]) - n[1][0], a = e.invertY(t[0][1]) - n[0][1], o = e.invertY(t[1][1]) - n[1][1];
	return e.translate(i > r ? (r + i) / 2 : Math.min(0, r) || Math.max(0, i), o > a ? (a + o) / 2 : Math.min(0, a) || Math.max(0, o));
}
function yc() {
	var e = pc, t = mc, n = vc, r = gc, i = _c, a = [0, Infinity], o = [[-Infinity, -Infinity], [Infinity, Infinity]], s = 250, c = Wt, l = to("start", "zoom", "end"), u, d, f, p = 500, m = 150, h = 0, g = 10;
	function _(e) {
		e.property("__zoom", hc).on("wheel.zoom", C, { passive: !1 }).on("mousedown.zoom", w).on("dblclick.zoom", T).filter(i).on("touchstart.zoom", E).on("touchmove.zoom", te).on("touchend.zoom touchcancel.zoom", ne).style("-webkit-tap-highlight-color", "rgba(0,0,0,0)");
	}
	_.transform = function(e, t, n, r) {
		var i = e.selection ? e.selection() : e;
		i.property("__zoom", hc), e === i ? i.interrupt().each(function() {
			S(this, arguments).event(r).start().zoom(null, typeof t == "function" ? t.apply(this, arguments) : t).end();
		}) : x(e, t, n, r);
	}, _.scaleBy = function(e, t, n, r) {
		_.scaleTo(e, function() {
			return this.__zoom.k * (typeof t == "function" ? t.apply(this, arguments) : t);
		}, n, r);
	}, _.scaleTo = function(e, r, i, a) {
		_.transform(e, function() {
			var e = t.apply(this, arguments), a = this.__zoom, s = i == null ? b(e) : typeof i == "function" ? i.apply(this, arguments) : i, c = a.invert(s), l = typeof r == "function" ? r.apply(this, arguments) : r;
			return n(y(v(a, l), s, c), e, o);
		}, i, a);
	}, _.translateBy = function(e, r, i, a) {
		_.transform(e, function() {
			return n(this.__zoom.translate(typeof r == "function" ? r.apply(this, arguments) : r, typeof i == "function" ? i.apply(this, arguments) : i), t.apply(this, arguments), o);
		}, null, a);
	}, _.translateTo = function(e, r, i, a, s) {
		_.transform(e, function() {
			var e = t.apply(this, arguments), s = this.__zoom, c = a == null ? b(e) : typeof a == "function" ? a.apply(this, arguments) : a;
			return n(lc.translate(c[0], c[1]).scale(s.k).translate(typeof r == "function" ? -r.apply(this, arguments) : -r, typeof i == "function" ? -i.apply(this, arguments) : -i), e, o);
		}, a, s);
	};
	function v(e, t) {
		return t = Math.max(a[0], Math.min(a[1], t)), t === e.k ? e : new K(t, e.x, e.y);
	}
	function y(e, t, n) {
		var r = t[0] - n[0] * e.k, i = t[1] - n[1] * e.k;
		return r === e.x && i === e.y ? e : new K(e.k, r, i);
	}
	function b(e) {
		return [(+e[0][0] + +e[1][0]) / 2, (+e[0][1] + +e[1][1]) / 2];
	}
	function x(e, n, r, i) {
		e.on("start.zoom", function() {
			S(this, arguments).event(i).start();
		}).on("interrupt.zoom end.zoom", function() {
			S(this, arguments).event(i).end();
		}).tween("zoom", function() {
			var e = this, a = arguments, o = S(e, a).event(i), s = t.apply(e, a), l = r == null ? b(s) : typeof r == "function" ? r.apply(e, a) : r, u = Math.max(s[1][0] - s[0][0], s[1][1] - s[0][1]), d = e.__zoom, f = typeof n == "function" ? n.apply(e, a) : n, p = c(d.invert(l).concat(u / d.k), f.invert(l).concat(u / f.k));
			return function(e) {
				if (e === 1) e = f;
				else {
					var t = p(e), n = u / t[2];
					e = new K(n, l[0] - t[0] * n, l[1] - t[1] * n);
				}
				o.zoom(null, e);
			};
		});
	}
	function S(e, t, n) {
		return !n && e.__zooming || new ee(e, t);
	}
	function ee(e, n) {
		this.that = e, this.args = n, this.active = 0, this.sourceEvent = null, this.extent = t.apply(e, n), this.taps = 0;
	}
	ee.prototype = {
		event: function(e) {
			return e && (this.sourceEvent = e), this;
		},
		start: function() {
			return ++this.active === 1 && (this.that.__zooming = this, this.emit("start")), this;
		},
		zoom: function(e, t) {
			return this.mouse && e !== "mouse" && (this.mouse[1] = t.invert(this.mouse[0])), this.touch0 && e !== "touch" && (this.touch0[1] = t.invert(this.touch0[0])), this.touch1 && e !== "touch" && (this.touch1[1] = t.invert(this.touch1[0])), this.that.__zoom = t, this.emit("zoom"), this;
		},
		end: function() {
			return --this.active === 0 && (delete this.that.__zooming, this.emit("end")), this;
		},
		emit: function(e) {
			var t = V(this.that).datum();
			l.call(e, this.that, new cc(e, {
				sourceEvent: this.sourceEvent,
				target: _,
				transform: this.that.__zoom,
				dispatch: l
			}), t);
		}
	};
	function C(t, ...i) {
		if (!e.apply(this, arguments)) return;
		var s = S(this, i).event(t), c = this.__zoom, l = Math.max(a[0], Math.min(a[1], c.k * 2 ** r.apply(this, arguments))), u = $a(t);
		if (s.wheel) (s.mouse[0][0] !== u[0] || s.mouse[0][1] !== u[1]) && (s.mouse[1] = c.invert(s.mouse[0] = u)), clearTimeout(s.wheel);
		else if (c.k === l) return;
		else s.mouse = [u, c.invert(u)], $o(this), s.start();
		fc(t), s.wheel = setTimeout(d, m), s.zoom("mouse", n(y(v(c, l), s.mouse[0], s.mouse[1]), s.extent, o));
		function d() {
			s.wheel = null, s.end();
		}
	}
	function w(t, ...r) {
		if (f || !e.apply(this, arguments)) return;
		var i = t.currentTarget, a = S(this, r, !0).event(t), s = V(t.view).on("mousemove.zoom", d, !0).on("mouseup.zoom", p, !0), c = $a(t, i), l = t.clientX, u = t.clientY;
		co(t.view), dc(t), a.mouse = [c, this.__zoom.invert(c)], $o(this), a.start();
		function d(e) {
			if (fc(e), !a.moved) {
				var t = e.clientX - l, r = e.clientY - u;
				a.moved = t * t + r * r > h;
			}
			a.event(e).zoom("mouse", n(y(a.that.__zoom, a.mouse[0] = $a(e, i), a.mouse[1]), a.extent, o));
		}
		function p(e) {
			s.on("mousemove.zoom mouseup.zoom", null), lo(e.view, a.moved), fc(e), a.event(e).end();
		}
	}
	function T(r, ...i) {
		if (e.apply(this, arguments)) {
			var a = this.__zoom, c = $a(r.changedTouches ? r.changedTouches[0] : r, this), l = a.invert(c), u = a.k * (r.shiftKey ? .5 : 2), d = n(y(v(a, u), c, l), t.apply(this, i), o);
			fc(r), s > 0 ? V(this).transition().duration(s).call(x, d, c, r) : V(this).call(_.transform, d, c, r);
		}
	}
	function E(t, ...n) {
		if (e.apply(this, arguments)) {
			var r = t.touches, i = r.length, a = S(this, n, t.changedTouches.length === i).event(t), o, s, c, l;
			for (dc(t), s = 0; s < i; ++s) c = r[s], l = $a(c, this), l = [
				l,
				this.__zoom.invert(l),
				c.identifier
			], a.touch0 ? !a.touch1 && a.touch0[2] !== l[2] && (a.touch1 = l, a.taps = 0) : (a.touch0 = l, o = !0, a.taps = 1 + !!u);
			u &&= clearTimeout(u), o && (a.taps < 2 && (d = l[0], u = setTimeout(function() {
				u = null;
			}, p)), $o(this), a.start());
		}
	}
	function te(e, ...t) {
		if (this.__zooming) {
			var r = S(this, t).event(e), i = e.changedTouches, a = i.length, s, c, l, u;
			for (fc(e), s = 0; s < a; ++s) c = i[s], l = $a(c, this), r.touch0 && r.touch0[2] === c.identifier ? r.touch0[0] = l : r.touch1 && r.touch1[2] === c.identifier && (r.touch1[0] = l);
			if (c = r.that.__zoom, r.touch1) {
				var d = r.touch0[0], f = r.touch0[1], p = r.touch1[0], m = r.touch1[1], h = (h = p[0] - d[0]) * h + (h = p[1] - d[1]) * h, g = (g = m[0] - f[0]) * g + (g = m[1] - f[1]) * g;
				c = v(c, Math.sqrt(h / g)), l = [(d[0] + p[0]) / 2, (d[1] + p[1]) / 2], u = [(f[0] + m[0]) / 2, (f[1] + m[1]) / 2];
			} else if (r.touch0) l = r.touch0[0], u = r.touch0[1];
			else return;
			r.zoom("touch", n(y(c, l, u), r.extent, o));
		}
	}
	function ne(e, ...t) {
		if (this.__zooming) {
			var n = S(this, t).event(e), r = e.changedTouches, i = r.length, a, o;
			for (dc(e), f && clearTimeout(f), f = setTimeout(function() {
				f = null;
			}, p), a = 0; a < i; ++a) o = r[a], n.touch0 && n.touch0[2] === o.identifier ? delete n.touch0 : n.touch1 && n.touch1[2] === o.identifier && delete n.touch1;
			if (n.touch1 && !n.touch0 && (n.touch0 = n.touch1, delete n.touch1), n.touch0) n.touch0[1] = this.__zoom.invert(n.touch0[0]);
			else if (n.end(), n.taps === 2 && (o = $a(o, this), Math.hypot(d[0] - o[0], d[1] - o[1]) < g)) {
				var s = V(this).on("dblclick.zoom");
				s && s.apply(this, arguments);
			}
		}
	}
	return _.wheelDelta = function(e) {
		return arguments.length ? (r = typeof e == "function" ? e : sc(+e), _) : r;
	}, _.filter = function(t) {
		return arguments.length ? (e = typeof t == "function" ? t : sc(!!t), _) : e;
	}, _.touchable = function(e) {
		return arguments.length ? (i = typeof e == "function" ? e : sc(!!e), _) : i;
	}, _.extent = function(e) {
		return arguments.length ? (t = typeof e == "function" ? e : sc([[+e[0][0], +e[0][1]], [+e[1][0], +e[1][1]]]), _) : t;
	}, _.scaleExtent = function(e) {
		return arguments.length ? (a[0] = +e[0], a[1] = +e[1], _) : [a[0], a[1]];
	}, _.translateExtent = function(e) {
		return arguments.length ? (o[0][0] = +e[0][0], o[1][0] = +e[1][0], o[0][1] = +e[0][1], o[1][1] = +e[1][1], _) : [[o[0][0], o[0][1]], [o[1][0], o[1][1]]];
	}, _.constrain = function(e) {
		return arguments.length ? (n = e, _) : n;
	}, _.duration = function(e) {
		return arguments.length ? (s = +e, _) : s;
	}, _.interpolate = function(e) {
		return arguments.length ? (c = e, _) : c;
	}, _.on = function() {
		var e = l.on.apply(l, arguments);
		return e === l ? _ : e;
	}, _.clickDistance = function(e) {
		return arguments.length ? (h = (e = +e) * e, _) : Math.sqrt(h);
	}, _.tapDistance = function(e) {
		return arguments.length ? (g = +e, _) : g;
	}, _;
}
// src/scene.ts
var q = {
	left: 74,
	right: 28,
	top: 40,
	bottom: 78
}, bc = 4e4, xc = [
	.9,
	1.5,
	2.3,
	3.2
], Sc = class {
	view;
	rows;
	columnWidth = 60;
	rowHeight = 30;
	width = 800;
	height = 600;
	drawn = /* @__PURE__ */ new Int32Array();
	drawnCount = 0;
	onCount = 0;
	heads;
	constructor(e) {
		this.view = e, this.rows = e.levels.length + 1, this.heads = Math.max(1, ...e.levels.map((e) => e.n_heads));
	}
	resize(e, t) {
		this.width = e, this.height = t;
		let n = {
			width: e - q.left - q.right,
			height: t - q.top - q.bottom
		};
		this.columnWidth = Math.min(110, Math.max(30, n.width / Math.max(this.view.nTokens, 1))), this.rowHeight = Math.max(16, n.height / Math.max(this.rows - 1, 1));
	}
	get worldWidth() {
		return q.left + q.right + this.columnWidth * this.view.nTokens;
	}
	get worldHeight() {
		return q.top + q.bottom + this.rowHeight * (this.rows - 1);
	}
	x(e, t) {
		return t.x + t.k * (q.left + this.columnWidth * (e + .5));
	}
	y(e, t) {
		let n = q.top + this.rowHeight * (this.rows - 1 - e);
		return t.k < 1 ? n + Math.min(0, t.y) : t.y + t.k * n;
	}
	rowLabel(e) {
		if (e === 0) return "embedding";
		let t = this.view.levels[e - 1], n = t.mlp && t.n_heads ? "" : t.mlp ? " MLP" : " attn";
		return `${t.layer}${n}`;
	}
	tokenLabel(e) {
		return I(this.view.input.tokens[e] ?? "");
	}
	draw(e, t, n, r, i, a, o = {}) {
		let { view: s } = this;
		e.box(0, 0, this.width, this.height, n.ground);
		let c = {
			x: q.left - 8,
			y: 0,
			width: this.width - q.left + 8,
			height: this.height - q.bottom + 12
		};
		e.clip(c.x, c.y, c.width, c.height), this.drawGrid(e, t, n);
		let l = s.edges;
		l && this.drawEdges(e, l, t, n, r, i, a, o), e.unclip(), this.drawLabels(e, t, n);
	}
	visibleTokens(e) {
		let t = e.k * this.columnWidth, n = Math.floor((q.left - e.x - e.k * q.left) / t) - 1, r = Math.ceil((this.width - e.x - e.k * q.left) / t) + 1;
		return [Math.max(0, n), Math.min(this.view.nTokens - 1, r)];
	}
	drawGrid(e, t, n) {
		let [r, i] = this.visibleTokens(t), a = Math.max(1, Math.ceil(5 / (t.k * this.columnWidth))), o = [];
		for (let e = 0; e < this.rows; e++) for (let n = r; n <= i; n += a) o.push([this.x(n, t), this.y(e, t)]);
		e.squares(o, 1, n.faint);
	}
	drawEdges(e, t, n, r, i, a, o, s) {
		let c = t.orders[i], [l, u] = this.visibleTokens(n), d = s.limit ?? bc, f = this.passes(t, o);
		this.drawn.length < t.kept && (this.drawn = new Int32Array(t.kept));
		let p = 0, m = 0, h = (e) => {
			m++, p >= d || t.source[e] > u || t.target[e] < l || (this.drawn[p++] = e);
		};
		for (let e = 0; e < c.sorted.length && c.ranks[e] < a; e++) {
			let n = c.sorted[e];
			f(n) && !o.hidden.has(t.edge[n]) && h(n);
		}
		if (o.pinned.size) for (let e = 0; e < t.kept; e++) o.pinned.has(t.edge[e]) && c.rank[e] >= a && h(e);
		if (this.drawnCount = p, this.onCount = m, s.fresh) {
			let [i, a] = s.fresh;
			e.path(6, r.accent, .28, (e) => {
				for (let r = 0; r < p; r++) {
					let o = c.rank[this.drawn[r]];
					o >= i && o < a && this.trace(e, this.drawn[r], t, n);
				}
			});
		}
		let g = this.strengths(t, i), _ = /* @__PURE__ */ new Map(), v = p > 4e3 ? .45 : p > 1200 ? .65 : .9;
		for (let e = 0; e < p; e++) {
			let i = this.drawn[e], a = Math.min(xc.length - 1, Math.floor(g(i) * xc.length)), o = wc(this.view, t.kind[i]) === "residual", c = t.head[i] < 0 && !o, l = o ? r.residual : c ? r.mlp : Rr(t.head[i], this.heads, r), u = o ? -1 : c ? -2 : t.head[i], d = o ? .8 : v;
			if (s.shared) {
				let e = s.shared(i);
				l = e ? r.shared : r.only, u = e ? -3 : -4, d = e ? .45 : .9;
			}
			let f = `${u}/${a}`, p = _.get(f);
			p || _.set(f, p = {
				colour: l,
				width: xc[a] * (o ? 1.2 : 1) * Math.min(1.6, Math.max(.7, Math.sqrt(n.k))),
				alpha: d,
				edges: []
			}), p.edges.push(i);
		}
		let y = [..._.keys()].sort((e, t) => Number(e.split("/")[1]) - Number(t.split("/")[1]));
		for (let r of y) {
			let { colour: i, width: a, alpha: o, edges: s } = _.get(r);
			e.path(a, i, o, (e) => {
				for (let r of s) this.trace(e, r, t, n);
			});
		}
		let b = [], x = /* @__PURE__ */ new Set();
		for (let e = 0; e < p; e++) {
			let r = this.drawn[e], { nTokens: i } = this.view;
			x.add(t.level[r] * i + t.source[r]).add((t.level[r] + 1) * i + t.target[r]), t.head[r] < 0 && wc(this.view, t.kind[r]) !== "residual" && b.push(this.middle(r, t, n));
		}
		let S = n.k * this.columnWidth < 14;
		S || e.squares(b, Math.min(4, .12 * this.rowHeight * Math.max(1, n.k)), s.shared ? r.shared : r.mlp);
		let ee = [];
		for (let e of x) {
			let t = e % this.view.nTokens;
			t >= l && t <= u && ee.push([this.x(t, n), this.y(Math.floor(e / this.view.nTokens), n)]);
		}
		e.dots(ee, S ? 1.5 : Math.min(4, .16 * this.rowHeight * Math.max(1, n.k)), r.ink);
		let C = [this.x(this.view.nTokens - 1, n), this.y(this.rows - 1, n)];
		e.dots([C], S ? 3 : 5.5, r.accent, r.ground);
		let w = (r, i, a) => {
			if (r) {
				if ("edge" in r) {
					let o = this.indexOf(r.edge);
					o >= 0 && e.path(i, a, 1, (e) => this.trace(e, o, t, n));
				} else e.path(i * .6, a, .9, (e) => {
					for (let i = 0; i < p; i++) {
						let a = this.drawn[i], o = t.level[a] + 1 === r.row && t.target[a] === r.token, s = t.level[a] === r.row && t.source[a] === r.token;
						(o || s) && this.trace(e, a, t, n);
					}
				}), e.dots([[this.x(r.token, n), this.y(r.row, n)]], 7, "transparent", a);
			}
		};
		if (s.component) {
			let [i, a, o] = s.component;
			e.path(3.5, r.accent, .8, (e) => {
				for (let r = 0; r < p; r++) {
					let s = this.drawn[r];
					t.level[s] === i && t.kind[s] === a && t.head[s] === o && this.trace(e, s, t, n);
				}
			});
		}
		if (w(s.hover, 4, r.accent), w(s.selected, 5, r.accent), s.cursor && !("edge" in s.cursor)) {
			let { row: t, token: i } = s.cursor, [a, o] = [this.x(i, n), this.y(t, n)];
			e.path(2, r.accent, 1, (e) => {
				e.moveTo(a - 11, o - 11), e.lineTo(a + 11, o - 11), e.lineTo(a + 11, o + 11), e.lineTo(a - 11, o + 11), e.lineTo(a - 11, o - 11);
			}, [3, 2]);
		}
	}
	passes(e, t) {
		let n = this.view.kinds.map((e) => !t.kinds.has(e)), { layers: r, heads: i } = t, a = this.view.levels.map((e) => e.layer), o = new Set(t.hiddenComponents);
		return (t) => {
			if (!n[e.kind[t]]) return !1;
			let s = a[e.level[t]];
			return r && (s < r[0] || s > r[1]) || i && e.head[t] >= 0 && !i.has(e.head[t]) ? !1 : !(o.size && o.has(`${s}/${this.view.kinds[e.kind[t]]}/${e.head[t]}`));
		};
	}
	scaleCache = /* @__PURE__ */ new Map();
	strengths(e, t) {
		let n = this.scaleCache.get(t);
		if (!n) {
			let r = e.orders[t].importance, i = Float32Array.from(r).sort(), a = i[Math.floor(.995 * (i.length - 1))] || 1;
			this.scaleCache.set(t, n = (e) => Math.min(.999, Math.sqrt(r[e] / a)));
		}
		return n;
	}
	byEdge = null;
	indexOf(e) {
		return this.byEdge ||= new Map(Array.from(this.view.edges?.edge ?? [], (e, t) => [e, t])), this.byEdge.get(e) ?? -1;
	}
	trace(e, t, n, r) {
		let [i, a, o, s, c, l, u, d] = this.curve(t, n, r);
		e.moveTo(i, a), o === i && c === i && u === i ? e.lineTo(u, d) : e.bezierCurveTo(o, s, c, l, u, d);
	}
	curve(e, t, n) {
		let r = t.level[e], i = t.head[e], a = this.y(r, n), o = this.y(r + 1, n), s = this.x(t.source[e], n);
		if (i < 0) {
			if (wc(this.view, t.kind[e]) === "residual") return [
				s,
				a,
				s,
				a,
				s,
				o,
				s,
				o
			];
			let r = Math.min(16, .3 * n.k * this.columnWidth);
			return [
				s,
				a,
				s + r,
				a + .3 * (o - a),
				s + r,
				a + .7 * (o - a),
				s,
				o
			];
		}
		let c = this.x(t.target[e], n), l = (i - (this.heads - 1) / 2) * Math.min(2.4, .24 * n.k * this.columnWidth / this.heads);
		if (t.source[e] === t.target[e]) {
			let e = Math.min(18, .3 * n.k * this.columnWidth) * (.5 + .5 * (i + 1) / this.heads);
			return [
				s,
				a,
				s - e,
				a + .3 * (o - a),
				s - e,
				a + .7 * (o - a),
				s,
				o
			];
		}
		return [
			s + l,
			a,
			s + l,
			a + .7 * (o - a),
			c + l,
			a + .25 * (o - a),
			c,
			o
		];
	}
	middle(e, t, n) {
		let [r, i, a, , , , , o] = this.curve(e, t, n);
		return [r + .75 * (a - r), (i + o) / 2];
	}
	pick(e, t, n) {
		let { view: r } = this;
		if (e < q.left - 8 || t > this.height - q.bottom + 12) return null;
		let i = n.k * this.columnWidth, a = Math.round((e - n.x - n.k * q.left) / i - .5);
		if (a >= 0 && a < r.nTokens && Math.abs(this.x(a, n) - e) < Math.min(9, i / 2)) {
			for (let e = 0; e < this.rows; e++) if (Math.abs(this.y(e, n) - t) < Math.min(7, this.rowHeight / 2.5)) return {
				row: e,
				token: a
			};
		}
		let o = r.edges;
		if (!o) return null;
		let s = -1, c = 36;
		for (let r = 0; r < this.drawnCount; r++) {
			let i = this.drawn[r], [a, l, u, d, f, p, m, h] = this.curve(i, o, n);
			if (!(t > l + 6 || t < h - 6) && !(e < Math.min(a, u, m) - 6 || e > Math.max(a, u, m) + 6)) for (let n = 0; n <= 24; n++) {
				let r = n / 24, o = 1 - r, g = o * o * o * a + 3 * o * o * r * u + 3 * o * r * r * f + r * r * r * m - e, _ = o * o * o * l + 3 * o * o * r * d + 3 * o * r * r * p + r * r * r * h - t, v = g * g + _ * _;
				v < c && ([c, s] = [v, i]);
			}
		}
		return s < 0 ? null : { edge: o.edge[s] };
	}
	drawLabels(e, t, n) {
		let r = this.height - q.bottom + 12;
		e.clip(0, 0, this.width, r);
		let i = Infinity;
		for (let a = 0; a < this.rows; a++) {
			let o = this.y(a, t);
			o < 4 || o > r || i - o < 13 || (e.text(q.left - 14, o, this.rowLabel(a), n.muted, {
				size: 11,
				align: "right"
			}), i = o);
		}
		e.unclip();
		let a = t.k * this.columnWidth, [o, s] = this.visibleTokens(t), c = a >= 46, l = Math.max(1, Math.ceil(15 / a));
		e.clip(c ? 0 : q.left - 40, r, this.width, q.bottom);
		for (let i = o; i <= s; i++) {
			if ((this.view.nTokens - 1 - i) % l) continue;
			let o = this.x(i, t);
			if (o < q.left - 8 || o > this.width) continue;
			let s = i === this.view.nTokens - 1;
			if (c) {
				let t = Math.max(3, Math.floor(a / 7.2));
				e.text(o, r + 14, Cc(this.tokenLabel(i), t), n.ink, {
					align: "center",
					bold: s
				}), e.text(o, r + 31, String(i), n.muted, {
					size: 10,
					align: "center"
				});
			} else e.text(o + 3, r + 6, Cc(this.tokenLabel(i), 11), n.ink, {
				size: 11,
				align: "right",
				angle: -.9,
				bold: s
			});
		}
		e.unclip();
	}
};
function Cc(e, t) {
	let n = [...e];
	return n.length <= t + 2 ? e : `${n.slice(0, t).join("")}…\u2069`;
}
function wc(e, t) {
	let n = e.kinds[t];
	return n.startsWith("residual") ? "residual" : n;
}
// src/surface.ts
var Tc = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif", Ec = class {
	c;
	constructor(e) {
		this.c = e;
	}
	path(e, t, n, r, i = []) {
		let { c: a } = this;
		a.globalAlpha = n, a.strokeStyle = t, a.lineWidth = e, a.setLineDash(i), a.beginPath(), r(a), a.stroke(), a.globalAlpha = 1, a.setLineDash([]);
	}
	dots(e, t, n, r) {
		let { c: i } = this;
		i.fillStyle = n, i.beginPath();
		for (let [n, r] of e) i.moveTo(n + t, r), i.arc(n, r, t, 0, 2 * Math.PI);
		i.fill(), r && (i.strokeStyle = r, i.lineWidth = 2, i.stroke());
	}
	squares(e, t, n) {
		this.c.fillStyle = n;
		for (let [n, r] of e) this.c.fillRect(n - t, r - t, 2 * t, 2 * t);
	}
	text(e, t, n, r, { size: i = 12, align: a = "left", angle: o = 0, bold: s = !1 } = {}) {
		let { c } = this;
		c.save(), c.translate(e, t), c.rotate(o), c.font = `${s ? 600 : 400} ${i}px ${Tc}`, c.textAlign = a, c.textBaseline = "middle", c.direction = "ltr", c.fillStyle = r, c.fillText(n, 0, 0), c.restore();
	}
	box(e, t, n, r, i) {
		this.c.fillStyle = i, this.c.fillRect(e, t, n, r);
	}
	clip(e, t, n, r) {
		this.c.save(), this.c.beginPath(), this.c.rect(e, t, n, r), this.c.clip();
	}
	unclip() {
		this.c.restore();
	}
}, Dc = (e) => e.replace(/[&<>"']/g, (e) => `&#${e.charCodeAt(0)};`).replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffe\uffff]/g, "�"), J = (e) => Number(e.toFixed(2)), Oc = class {
	width;
	height;
	parts = [];
	clips = 0;
	constructor(e, t) {
		this.width = e, this.height = t;
	}
	path(e, t, n, r, i = []) {
		let a = [];
		if (r({
			moveTo: (e, t) => a.push(`M${J(e)} ${J(t)}`),
			lineTo: (e, t) => a.push(`L${J(e)} ${J(t)}`),
			bezierCurveTo: (e, t, n, r, i, o) => a.push(`C${J(e)} ${J(t)} ${J(n)} ${J(r)} ${J(i)} ${J(o)}`)
		}), !a.length) return;
		let o = i.length ? ` stroke-dasharray="${i.join(" ")}"` : "";
		this.parts.push(`<path d="${a.join("")}" fill="none" stroke="${t}" stroke-width="${J(e)}" stroke-opacity="${J(n)}"${o}/>`);
	}
	dots(e, t, n, r) {
		let i = r ? ` stroke="${r}" stroke-width="2"` : "";
		for (let [r, a] of e) this.parts.push(`<circle cx="${J(r)}" cy="${J(a)}" r="${J(t)}" fill="${n}"${i}/>`);
	}
	squares(e, t, n) {
		for (let [r, i] of e) this.parts.push(`<rect x="${J(r - t)}" y="${J(i - t)}" width="${J(2 * t)}" height="${J(2 * t)}" fill="${n}"/>`);
	}
	text(e, t, n, r, { size: i = 12, align: a = "left", angle: o = 0, bold: s = !1 } = {}) {
		let c = {
			left: "start",
			right: "end",
			center: "middle",
			start: "start",
			end: "end"
		}[a], l = o ? ` rotate(${J(o * 180 / Math.PI)})` : "";
		this.parts.push(`<text transform="translate(${J(e)} ${J(t)})${l}" font-size="${i}" font-weight="${s ? 600 : 400}" text-anchor="${c}" dominant-baseline="central" fill="${r}" xml:space="preserve">${Dc(n)}</text>`);
	}
	box(e, t, n, r, i) {
		this.parts.push(`<rect x="${J(e)}" y="${J(t)}" width="${J(n)}" height="${J(r)}" fill="${i}"/>`);
	}
	clip(e, t, n, r) {
		let i = `clip${++this.clips}`;
		this.parts.push(`<clipPath id="${i}"><rect x="${J(e)}" y="${J(t)}" width="${J(n)}" height="${J(r)}"/></clipPath><g clip-path="url(#${i})">`);
	}
	unclip() {
		this.parts.push("</g>");
	}
	toString() {
		return `<svg xmlns="http://www.w3.org/2000/svg" width="${this.width}" height="${this.height}" viewBox="0 0 ${this.width} ${this.height}" font-family="${Dc(Tc)}">${this.parts.join("")}</svg>\n`;
	}
}, kc = 6e3, Ac = 700, jc = class {
	view;
	events;
	element;
	canvas;
	scene;
	cursor = null;
	input;
	hovered = null;
	transform = lc;
	behaviour;
	frame = 0;
	moving = 0;
	idle = 0;
	grew = null;
	edgeAt = -1;
	observer;
	wanted;
	frames = 0;
	constructor(e, t, n, r) {
		this.view = e, this.events = n, this.scene = new Sc(e), this.wanted = r, this.canvas = P("canvas", {
			tabIndex: 0,
			role: "application",
			"aria-label": t,
			"aria-roledescription": "trace graph",
			"aria-describedby": "keys"
		}), this.element = P("div", { class: "graph" }, this.canvas), this.behaviour = yc().filter((e) => e.type === "wheel" ? !e.shiftKey : !e.button && !e.ctrlKey).on("zoom", (e) => {
			this.transform = e.transform, this.move(), e.sourceEvent && this.events.moved(this.transform);
		}), V(this.canvas).call(this.behaviour).on("dblclick.zoom", null), this.canvas.addEventListener("wheel", (e) => {
			e.shiftKey && (e.preventDefault(), this.pan(-(e.deltaX || e.deltaY), 0));
		}, { passive: !1 }), this.canvas.addEventListener("pointermove", (e) => this.hover(e)), this.canvas.addEventListener("pointerleave", () => this.setHover(null, 0, 0)), this.canvas.addEventListener("click", (e) => {
			let t = this.pickAt(e);
			t && !("edge" in t) && (this.cursor = t), this.events.select(t);
		}), this.canvas.addEventListener("keydown", (e) => this.key(e)), this.canvas.addEventListener("focus", () => {
			this.cursor ??= {
				row: this.scene.rows - 1,
				token: e.nTokens - 1
			}, this.schedule(), this.events.say(this.events.describe(this.cursor));
		}), this.canvas.addEventListener("blur", () => this.schedule()), this.observer = new ResizeObserver(() => this.resize()), this.observer.observe(this.element);
	}
	destroy() {
		this.observer.disconnect(), cancelAnimationFrame(this.frame), clearTimeout(this.idle);
	}
	update(e) {
		let t = this.input;
		this.input = e;
		let n = matchMedia("(prefers-reduced-motion: reduce)").matches;
		t && t.importance === e.importance && e.n > t.n && !n ? this.grew = {
			from: t.n,
			to: e.n,
			at: performance.now()
		} : t && e.n < t.n && (this.grew = null), this.schedule();
	}
	resize() {
		let { clientWidth: e, clientHeight: t } = this.element;
		if (!e || !t) return;
		let n = Math.min(devicePixelRatio || 1, 2);
		this.canvas.width = e * n, this.canvas.height = t * n;
		let r = this.scene.worldWidth === 0 || this.frames === 0;
		this.scene.resize(e, t);
		let { worldWidth: i, worldHeight: a } = this.scene;
		this.behaviour.extent([[0, 0], [e, t]]).translateExtent([[0, 0], [Math.max(i, e), Math.max(a, t)]]).scaleExtent([Math.min(1, e / i), 16]), r ? this.setTransform(this.wanted ?? this.home()) : this.setTransform(this.transform), this.schedule();
	}
	home() {
		return {
			k: 1,
			x: Math.min(0, this.scene.width - this.scene.worldWidth),
			y: 0
		};
	}
	reset() {
		this.setTransform(this.home()), this.events.moved(this.transform);
	}
	fit() {
		let e = Math.min(1, this.scene.width / this.scene.worldWidth);
		this.setTransform({
			k: e,
			x: 0,
			y: 0
		}), this.events.moved(this.transform);
	}
	zoomBy(e) {
		V(this.canvas).call(this.behaviour.scaleBy, e), this.events.moved(this.transform);
	}
	pan(e, t) {
		V(this.canvas).call(this.behaviour.translateBy, e / this.transform.k, t / this.transform.k), this.events.moved(this.transform);
	}
	setTransform(e) {
		V(this.canvas).call(this.behaviour.transform, lc.translate(e.x, e.y).scale(e.k));
	}
	get drawnEdges() {
		return this.scene.drawnCount;
	}
	move() {
		this.moving = performance.now(), clearTimeout(this.idle), this.idle = window.setTimeout(() => this.schedule(), 140), this.schedule();
	}
	schedule() {
		this.frame ||= requestAnimationFrame(() => this.draw());
	}
	draw() {
		if (this.frame = 0, !this.input || !this.canvas.width) return;
		let e = this.canvas.getContext("2d", { alpha: !1 }), t = this.canvas.width / this.scene.width;
		e.setTransform(t, 0, 0, t, 0, 0);
		let n = performance.now() - this.moving < 120, { importance: r, n: i, filter: a, palette: o, selected: s, component: c, shared: l } = this.input, u = this.grew && performance.now() - this.grew.at < Ac ? this.grew : null;
		this.scene.draw(new Ec(e), this.transform, o, r, i, a, {
			limit: n ? kc : void 0,
			fresh: u ? [u.from, u.to] : void 0,
			hover: this.hovered,
			selected: s,
			component: c,
			shared: l,
			cursor: this.focused() ? this.cursor : null
		}), this.frames++, u && this.schedule();
	}
	focused() {
		return this.canvas.getRootNode().activeElement === this.canvas;
	}
	pickAt(e) {
		let t = this.canvas.getBoundingClientRect();
		return this.scene.pick(e.clientX - t.left, e.clientY - t.top, this.transform);
	}
	hover(e) {
		e.buttons || this.setHover(this.pickAt(e), e.clientX, e.clientY);
	}
	setHover(e, t, n) {
		let r = JSON.stringify(e) === JSON.stringify(this.hovered);
		this.hovered = e, this.canvas.style.cursor = e ? "pointer" : "grab", r || this.schedule(), this.events.hover(e, t, n);
	}
	at(e, t) {
		return [this.scene.x(t, this.transform), this.scene.y(e, this.transform)];
	}
	key(e) {
		let t = {
			ArrowLeft: [0, -1],
			ArrowRight: [0, 1],
			ArrowUp: [1, 0],
			ArrowDown: [-1, 0]
		}[e.key];
		if (t && !e.ctrlKey && !e.altKey && !e.metaKey) {
			if (e.preventDefault(), e.shiftKey) return this.pan(-80 * t[1], 80 * t[0]);
			let n = this.cursor && !("edge" in this.cursor) ? this.cursor : {
				row: this.scene.rows - 1,
				token: this.view.nTokens - 1
			};
			this.cursor = {
				row: Math.max(0, Math.min(this.scene.rows - 1, n.row + t[0])),
				token: Math.max(0, Math.min(this.view.nTokens - 1, n.token + t[1]))
			}, this.edgeAt = -1, this.show(this.cursor), this.schedule(), this.events.say(this.events.describe(this.cursor));
			return;
		}
		if (e.ctrlKey || e.altKey || e.metaKey) return;
		let n = {
			"+": () => this.zoomBy(1.3),
			"=": () => this.zoomBy(1.3),
			"-": () => this.zoomBy(1 / 1.3),
			0: () => this.reset(),
			f: () => this.fit(),
			Enter: () => this.events.select(this.cursor),
			" ": () => this.events.select(this.cursor),
			e: () => this.nextEdge(1),
			E: () => this.nextEdge(-1),
			Escape: () => this.events.select(null)
		}[e.key];
		n ? (e.preventDefault(), n()) : this.events.key(e) && e.preventDefault();
	}
	show(e) {
		let [t, n] = this.at(e.row, e.token), r = t < 100 ? 100 - t : t > this.scene.width - 50 ? this.scene.width - 50 - t : 0, i = n < 30 ? 30 - n : n > this.scene.height - 100 ? this.scene.height - 100 - n : 0;
		(r || i) && this.pan(r, i);
	}
	nextEdge(e) {
		let { cursor: t, view: n } = this, r = n.edges;
		if (!t || "edge" in t || !r) return;
		let i = [];
		for (let e = 0; e < this.scene.drawnCount; e++) {
			let n = this.scene.drawn[e];
			(r.level[n] + 1 === t.row && r.target[n] === t.token || r.level[n] === t.row && r.source[n] === t.token) && i.push(n);
		}
		if (!i.length) return this.events.say("No edge is on at this node.");
		this.edgeAt = this.edgeAt < 0 ? e > 0 ? 0 : i.length - 1 : (this.edgeAt + e + i.length) % i.length, this.events.select({ edge: r.edge[i[this.edgeAt]] });
	}
	render(e, t) {
		let { importance: n, n: r, filter: i, selected: a, component: o, shared: s } = this.input;
		this.scene.draw(e, this.transform, t, n, r, i, {
			selected: a,
			component: o,
			shared: s
		});
	}
	toSvg() {
		let e = new Oc(this.scene.width, this.scene.height);
		return this.render(e, this.input.palette), e.toString();
	}
	toPng() {
		let e = document.createElement("canvas");
		e.width = 2 * this.scene.width, e.height = 2 * this.scene.height;
		let t = e.getContext("2d", { alpha: !1 });
		return t.scale(2, 2), this.render(new Ec(t), this.input.palette), new Promise((t, n) => e.toBlob((e) => e ? t(e) : n(/* @__PURE__ */ Error("the picture could not be made")), "image/png"));
	}
}, Mc = "densitometer.payload/1", Y = class extends Error {}, X = "The data of this page is cut short or damaged. Write it again with densitometer, or copy the whole file.";
async function Nc(e) {
	let t;
	if (e[0] === 31 && e[1] === 139) try {
		let n = new Blob([e]).stream().pipeThrough(new DecompressionStream("gzip"));
		t = await new Response(n).text();
	} catch {
		throw new Y(X);
	}
	else t = new TextDecoder().decode(e);
	let n;
	try {
		n = JSON.parse(t);
	} catch {
		throw new Y(X);
	}
	return Fc(n);
}
async function Pc(e) {
	let t;
	try {
		t = Bc(e.trim());
	} catch {
		throw new Y(X);
	}
	if (!t.length) throw new Y(X);
	return Nc(t);
}
function Fc(e) {
	let t = e?.schema;
	if (t !== "densitometer.payload/1") throw new Y(`This data has the schema ${JSON.stringify(t ?? null)}; this page reads ${JSON.stringify(Mc)}. Open it with the version of densitometer that wrote it, or measure again.`);
	try {
		if (e.kind === "tokens") {
			let t = /* @__PURE__ */ new Map();
			for (let [n, r] of Object.entries(e.views ?? {})) t.set(Number(n), Ic(r));
			return {
				kind: "tokens",
				label: String(e.label ?? ""),
				columns: e.columns,
				views: t,
				raw: e
			};
		}
		return {
			kind: "traces",
			views: e.views.map(Ic),
			raw: e
		};
	} catch (e) {
		throw e instanceof Y ? e : new Y(X);
	}
}
function Ic(e) {
	let t = { ...e };
	for (let e of Object.values(t.curves)) if (!e.length) throw new Y(X);
	if (t.nTokens = e.n_tokens_run ?? e.input.position + 1, t.edges = null, t.readings = null, t.levels ??= [], t.kinds ??= [], !e.edges) return t.grid = Int32Array.from(new Set(Object.values(t.curves).flat().map((e) => e.n_edges)).values()).filter((e) => e > 0).sort(), t;
	let n = e.edges, r = {};
	for (let [e, t] of Object.entries(n.orders)) {
		let n = Z(t.rank), i = Int32Array.from(n.keys()).sort((e, t) => n[e] - n[t]);
		r[e] = {
			rank: n,
			importance: Z(t.importance),
			sorted: i,
			ranks: i.map((e) => n[e])
		};
	}
	if (t.edges = {
		kept: n.kept,
		exactTo: n.exact_to,
		edge: Z(n.edge),
		level: Z(n.level),
		kind: Z(n.kind),
		head: Z(n.head),
		source: Z(n.source),
		target: Z(n.target),
		orders: r
	}, t.grid = Z(e.grid), t.components = {
		...e.components,
		counts: Rc(e.components.counts, Z)
	}, t.costs = Rc(e.costs, (e) => ({
		flops: Z(e.flops),
		parameters: Z(e.parameters)
	})), e.readings) {
		let n = e.readings;
		t.readings = {
			tokens: n.tokens,
			nodes: Lc(Z(n.nodes), 2, Z(n.node_tokens), Z(n.node_probabilities)),
			writers: Lc(Z(n.writers), 4, Z(n.writer_tokens), Z(n.writer_changes))
		};
	}
	return t;
}
function Lc(e, t, n, r) {
	let i = e.length / t, a = /* @__PURE__ */ new Map();
	if (!i) return a;
	let o = n.length / i;
	for (let s = 0; s < i; s++) {
		let i = Array.from(e.subarray(s * t, (s + 1) * t)).join(",");
		a.set(i, [Array.from(n.subarray(s * o, (s + 1) * o)), Array.from(r.subarray(s * o, (s + 1) * o))]);
	}
	return a;
}
function Rc(e, t) {
	return Object.fromEntries(Object.entries(e).map(([e, n]) => [e, t(n)]));
}
var zc = {
	i1: Int8Array,
	u1: Uint8Array,
	i2: Int16Array,
	u2: Uint16Array,
	i4: Int32Array,
	u4: Uint32Array,
	f4: Float32Array
};
function Z(e) {
	let t = zc[e.dtype];
	if (!t) throw new Y(X);
	let n = new t(Bc(e.data).buffer);
	if (n.length !== e.shape.reduce((e, t) => e * t, 1)) throw new Y(X);
	if (e.delta) {
		let t = e.shape.slice(1).reduce((e, t) => e * t, 1);
		for (let e = t; e < n.length; e++) n[e] += n[e - t];
	}
	return n;
}
function Bc(e) {
	let t = atob(e), n = new Uint8Array(t.length);
	for (let e = 0; e < t.length; e++) n[e] = t.charCodeAt(e);
	return n;
}
// src/state.ts
function Vc(e, t) {
	return {
		view: 0,
		importance: e,
		n: t,
		compare: null,
		kinds: /* @__PURE__ */ new Set(),
		layers: null,
		heads: null,
		pinned: /* @__PURE__ */ new Set(),
		hidden: /* @__PURE__ */ new Set(),
		hiddenComponents: /* @__PURE__ */ new Set(),
		selected: null,
		zoom: null,
		theme: "auto"
	};
}
function Hc(e) {
	let t = new URLSearchParams();
	return e.view && t.set("view", String(e.view)), t.set("by", e.importance), t.set("n", String(e.n)), e.compare && t.set("with", `${e.compare.view}:${e.compare.importance}`), e.kinds.size && t.set("without", [...e.kinds].join(" ")), e.layers && t.set("layers", e.layers.join("-")), e.heads && t.set("heads", [...e.heads].join(" ")), e.pinned.size && t.set("pinned", [...e.pinned].join(" ")), e.hidden.size && t.set("hidden", [...e.hidden].join(" ")), e.hiddenComponents.size && t.set("off", [...e.hiddenComponents].join(" ")), e.selected && t.set("selected", e.selected), e.zoom && t.set("zoom", e.zoom.map((e) => Number(e.toPrecision(6))).join(" ")), e.theme !== "auto" && t.set("theme", e.theme), `#${t}`;
}
function Uc(e, t, n) {
	let r = new URLSearchParams(e.replace(/^#/, "")), i = { ...t }, a = (e) => e !== null && /^\d{1,12}$/.test(e) ? Number(e) : null, o = (e) => (r.get(e) ?? "").split(" ").filter(Boolean), s = a(r.get("view"));
	s !== null && s < n.length && (i.view = s);
	let c = r.get("by");
	c !== null && n[i.view].importances.includes(c) ? i.importance = c : n[i.view].importances.includes(i.importance) || (i.importance = n[i.view].importances[0]);
	let l = a(r.get("n"));
	l !== null && l >= 1 && (i.n = Math.min(l, n[i.view].edges));
	let u = /^(\d{1,3}):(.+)$/.exec(r.get("with") ?? "");
	u && n[Number(u[1])]?.importances.includes(u[2]) && (i.compare = {
		view: Number(u[1]),
		importance: u[2]
	}), i.kinds = new Set(o("without"));
	let d = /^(\d{1,5})-(\d{1,5})$/.exec(r.get("layers") ?? "");
	d && (i.layers = [Number(d[1]), Number(d[2])]);
	let f = (e) => new Set(o(e).map(a).filter((e) => e !== null));
	r.has("heads") && (i.heads = f("heads"));
	let p = (e) => new Set([...f(e)].filter((e) => e < n[i.view].edges));
	i.pinned = p("pinned"), i.hidden = p("hidden"), i.hiddenComponents = new Set(o("off"));
	let m = r.get("selected");
	i.selected = m !== null && /^(e\d+|n\d+,\d+|c\d+)$/.test(m) ? m : null;
	let h = o("zoom").map(Number);
	h.length === 3 && h.every(Number.isFinite) && h[0] > 0 && (i.zoom = h);
	let g = r.get("theme");
	return (g === "light" || g === "dark") && (i.theme = g), i;
}
// src/explorer.ts
var Wc = 220, Gc = 8, Kc = class {
	payload;
	host;
	options;
	replace;
	element;
	state;
	graphs = [];
	views;
	curve;
	asked = /* @__PURE__ */ new Map();
	timer = 0;
	asking = 0;
	ran = null;
	running = !1;
	frame = 0;
	hashTimer = 0;
	details = /* @__PURE__ */ new Map();
	live = P("div", {
		class: "sr",
		"aria-live": "polite",
		role: "status"
	});
	tip = P("div", {
		class: "tip",
		role: "tooltip",
		hidden: !0
	});
	notice = P("div", {
		class: "notice",
		role: "alert",
		hidden: !0
	});
	stage = P("div", { class: "stage" });
	sentence = P("p", { class: "sentence" });
	panels = {
		prediction: P("section", { "aria-label": "Prediction" }),
		reading: P("section", { "aria-label": "What the trace gives and costs" }),
		selection: P("section", { "aria-label": "Selection" }),
		chosen: P("section", { "aria-label": "Chosen edges" }),
		components: P("section", { "aria-label": "Heads and MLPs" }),
		filter: P("section", { "aria-label": "What is drawn" }),
		compare: P("section", { "aria-label": "Comparison" }),
		rest: P("section", { "aria-label": "What is not drawn" })
	};
	bar = P("header", { class: "bar" });
	help;
	onHash = () => {
		location.hash !== this.lastHash && this.restore();
	};
	lastHash = "";
	darkQuery = matchMedia("(prefers-color-scheme: dark)");
	onScheme = () => this.update();
	constructor(e, t, n, r) {
		this.payload = e, this.host = t, this.options = n, this.replace = r, this.views = e.views, this.curve = new Xr((e) => this.setSize(e)), this.state = this.initial(), this.help = Yc(), this.element = P("div", { class: "explorer" }, this.bar, this.notice, P("main", {}, P("div", { class: "left" }, this.sentence, this.stage, this.legend()), P("aside", { class: "panels" }, P("section", { "aria-label": "Size of the trace" }, P("h2", {}, "Size of the trace"), this.curve.element), this.panels.prediction, this.panels.reading, this.panels.selection, this.panels.chosen, this.panels.compare, this.panels.components, this.panels.filter, this.panels.rest)), this.tip, this.live, this.help), this.buildBar(), this.build(), n.address && addEventListener("hashchange", this.onHash), this.darkQuery.addEventListener("change", this.onScheme), this.element.explorer = this;
	}
	destroy() {
		removeEventListener("hashchange", this.onHash), this.darkQuery.removeEventListener("change", this.onScheme);
		for (let e of this.graphs) e.destroy();
		cancelAnimationFrame(this.frame), clearTimeout(this.timer), clearTimeout(this.hashTimer);
	}
	initial() {
		let e = this.views[0], n = e.importances[0], r = e.density[n].size_at, i = Vc(n, t(e, Math.max(1, Math.round((r ?? .1) * e.graph.n_edges))));
		if (this.views.length > 1 && this.views[1].edges && e.edges && (i.compare = {
			view: 1,
			importance: this.views[1].importances[0]
		}), !this.options.address) return i;
		let a = this.views.map((e) => ({
			importances: e.importances,
			n: e.nTokens,
			edges: e.graph.n_edges
		})), o = Uc(location.hash, i, a), s = this.views[o.view];
		return !location.hash.includes("n=") && o.importance !== n && (o.n = t(s, (s.density[o.importance].size_at ?? .1) * s.graph.n_edges)), o.n = t(s, Math.max(1, o.n)), o;
	}
	restore() {
		this.state = this.initial(), this.build();
	}
	saveHash() {
		this.options.address && (clearTimeout(this.hashTimer), this.hashTimer = window.setTimeout(() => {
			this.lastHash = Hc(this.state);
			try {
				history.replaceState(null, "", this.lastHash);
			} catch {}
		}, 150));
	}
	get view() {
		return this.views[this.state.view];
	}
	get palette() {
		let { theme: e } = this.state;
		return e === "dark" || e === "auto" && this.darkQuery.matches ? Lr : Ir;
	}
	filter() {
		let { kinds: e, layers: t, heads: n, hidden: r, pinned: i, hiddenComponents: a } = this.state;
		return {
			kinds: e,
			layers: t,
			heads: n,
			hidden: r,
			pinned: i,
			hiddenComponents: a
		};
	}
	sides() {
		let { state: e, view: n } = this, r = [{
			side: {
				view: e.view,
				importance: e.importance
			},
			view: n,
			n: e.n
		}];
		if (e.compare) {
			let i = this.views[e.compare.view], a = t(i, Math.max(1, e.n / n.graph.n_edges * i.graph.n_edges));
			r.push({
				side: e.compare,
				view: i,
				n: a
			});
		}
		return r;
	}
	setSize(e) {
		e !== this.state.n && (this.state.n = e, this.later());
	}
	set(e, t = !1) {
		Object.assign(this.state, e), t ? this.build() : this.later();
	}
	later() {
		this.frame ||= requestAnimationFrame(() => {
			this.frame = 0, this.update();
		});
	}
	buildBar() {
		let { view: e } = this, t = e.input.text ?? e.input.tokens.join(""), n = P("div", { class: "title" }, P("strong", {}, "densitometer"), P("span", { class: "muted" }, `${e.model.name} · ${e.nTokens} tokens · ${R(e.graph.n_edges)} edges`)), r = [this.options.back ? P("button", {
			type: "button",
			onclick: this.options.back
		}, "← Back to the text") : null, n];
		this.host.kind === "server" && !this.options.back ? r.push(this.measureForm(t)) : r.push(P("div", {
			class: "prompt",
			title: t
		}, I(t.slice(0, 300))));
		let i = P("div", { class: "buttons" });
		this.host.kind === "server" && this.options.along && i.append(P("button", {
			type: "button",
			onclick: this.options.along
		}, "Along the text"));
		let a = P("details", { class: "menu" }, P("summary", {}, "Export"), P("div", {}, P("button", {
			type: "button",
			onclick: () => this.export("svg")
		}, "Picture, SVG"), P("button", {
			type: "button",
			onclick: () => this.export("png")
		}, "Picture, PNG"), P("button", {
			type: "button",
			onclick: () => this.export("json")
		}, "Data, JSON"), this.options.address ? P("button", {
			type: "button",
			onclick: () => this.copyLink()
		}, "Copy link to this view") : null)), o = P("input", {
			type: "file",
			accept: ".json,.gz,application/json",
			class: "sr",
			tabIndex: -1,
			"aria-hidden": "true",
			onchange: () => this.openFile(o)
		});
		i.append(a, P("button", {
			type: "button",
			title: "Compare with, or open, data that was exported from such a page",
			onclick: () => o.click()
		}, "Open…"), o, P("button", {
			type: "button",
			class: "theme",
			onclick: () => this.nextTheme()
		}, "Theme"), P("button", {
			type: "button",
			"aria-haspopup": "dialog",
			onclick: () => this.help.showModal()
		}, "Help")), r.push(i), this.bar.replaceChildren(...r.filter(Boolean));
	}
	measureForm(e) {
		let t = P("input", {
			type: "text",
			name: "text",
			value: e,
			"aria-label": "Text to measure",
			autocomplete: "off",
			spellcheck: !1
		}), n = this.payload.raw.offers?.importances ?? this.view.importances, r = new Set(this.view.importances), i = P("details", { class: "menu" }, P("summary", {}, "Scores"), P("div", {}, ...n.map((e) => P("label", {}, P("input", {
			type: "checkbox",
			checked: r.has(e),
			onchange: (t) => t.target.checked ? r.add(e) : r.delete(e)
		}), ` ${e}`)))), a = P("button", { type: "submit" }, "Measure");
		return P("form", {
			class: "measure",
			onsubmit: async (e) => {
				e.preventDefault(), this.running || await this.busy(a, "Measuring…", async () => {
					let e = await this.host.ask("measure", {
						text: t.value,
						importance: n.filter((e) => r.has(e))
					});
					try {
						history.replaceState(null, "", "#");
					} catch {}
					this.replace(Fc(e));
				});
			}
		}, t, i, a);
	}
	async busy(e, t, n) {
		let r = e.textContent;
		this.running = !0, e.disabled = !0, e.textContent = t, this.fail(null);
		try {
			await n();
		} catch (e) {
			this.fail(e.message);
		} finally {
			this.running = !1, e.disabled = !1, e.textContent = r;
		}
	}
	fail(e) {
		this.notice.hidden = e === null, e !== null && this.notice.replaceChildren(P("span", {}, e), P("button", {
			type: "button",
			onclick: () => this.fail(null)
		}, "Close"));
	}
	nextTheme() {
		let e = [
			"auto",
			"light",
			"dark"
		];
		this.set({ theme: e[(e.indexOf(this.state.theme) + 1) % 3] });
	}
	async copyLink() {
		this.lastHash = Hc(this.state);
		let e = location.href.replace(/#.*$/, "") + this.lastHash;
		try {
			await navigator.clipboard.writeText(e), this.say("Link copied.");
		} catch {
			this.fail(`This page may not write to the clipboard; copy the link yourself: ${e}`);
		}
	}
	async export(e) {
		let t = `densitometer-trace-${this.state.importance}-${this.state.n}`;
		try {
			if (e === "json") {
				let e = {
					...this.payload.raw,
					offers: void 0,
					state: Hc(this.state)
				};
				Fr(`${t}.json`, new Blob([JSON.stringify(e)], { type: "application/json" }));
				return;
			}
			for (let [n, r] of this.graphs.entries()) {
				let i = this.graphs.length > 1 ? `-${n + 1}` : "", a = e === "svg" ? new Blob([r.toSvg()], { type: "image/svg+xml" }) : await r.toPng();
				Fr(`${t}${i}.${e}`, a);
			}
		} catch (e) {
			this.fail(e.message);
		}
	}
	async openFile(e) {
		let t = e.files?.[0];
		if (e.value = "", t) try {
			let e = await Nc(new Uint8Array(await t.arrayBuffer()));
			if (e.kind !== "traces") return this.replace(e);
			this.fail(null), this.addViews(e);
		} catch (e) {
			this.fail(`${t.name}: ${e.message}`);
		}
	}
	addViews(e) {
		this.views.push(...e.views), this.payload.raw = {
			...this.payload.raw,
			views: [...this.payload.raw.views, ...e.raw.views]
		};
		let t = this.views.length - e.views.length;
		this.views[t].edges && this.view.edges && (this.state.compare = {
			view: t,
			importance: this.views[t].importances[0]
		}), this.build();
	}
	build() {
		for (let e of this.graphs) e.destroy();
		this.graphs = [];
		let e = [];
		this.view.edges ? this.sides().forEach(({ view: t, side: n }, r) => {
			let i = r === 0 && this.state.zoom ? {
				k: this.state.zoom[0],
				x: this.state.zoom[1],
				y: this.state.zoom[2]
			} : null, a = new jc(t, `Trace of ${t.nTokens} tokens and ${t.graph.n_layers} layers by ${n.importance}. Arrow keys move between nodes, E steps through a node's edges, Enter selects.`, {
				select: (e) => this.select(e, r),
				hover: (e, n, r) => this.hover(e, t, n, r),
				moved: (e) => {
					r === 0 && (this.state.zoom = [
						e.k,
						e.x,
						e.y
					]);
					let n = this.graphs[1 - r];
					n && n.view.nTokens === t.nTokens && n.setTransform(e), this.saveHash();
				},
				key: (e) => this.key(e),
				say: (e) => this.say(e),
				describe: (e) => this.describe(e, t)
			}, i);
			this.graphs.push(a);
			let o = this.state.compare ? P("div", { class: "side-name" }, this.sideName(n)) : null;
			e.push(P("div", { class: "side" }, o, a.element));
		}) : (e.push(P("div", { class: "empty" }, P("p", {}, "There is no trace to draw: this measurement was loaded from a file, and its model was not. The curve, the size and the predictions are here."), P("p", {}, P("code", {}, "densitometer explore measurement.json -m MODEL"), " loads both."))), this.state.compare = null), this.stage.replaceChildren(...e), this.stage.classList.toggle("two", e.length > 1), this.update();
		for (let e of this.graphs) e.resize();
	}
	sideName(e) {
		let t = this.views[e.view], n = t.input.text ?? t.input.tokens.join("");
		return `${t.model.name} · ${e.importance} · ${I(n.length > 60 ? `${n.slice(0, 60)}…` : n)}`;
	}
	update() {
		let { palette: e, state: t } = this;
		this.element.dataset.theme = e.dark ? "dark" : "light", this.bar.querySelector(".theme").textContent = `Theme: ${t.theme}`;
		let n = this.sides();
		this.graphs.forEach((t, r) => {
			let { view: i, side: a, n: o } = n[r], l;
			if (n.length > 1) {
				let e = n[1 - r];
				if (c(i, e.view)) {
					let t = s(i, e.view), n = e.view.edges.orders[e.side.importance].rank;
					l = (r) => t[r] >= 0 && n[t[r]] < e.n;
				}
			}
			let u = r === 0;
			t.update({
				importance: a.importance,
				n: o,
				filter: u ? this.filter() : {
					...this.filter(),
					hidden: /* @__PURE__ */ new Set(),
					pinned: /* @__PURE__ */ new Set(),
					hiddenComponents: /* @__PURE__ */ new Set()
				},
				palette: e,
				shared: l,
				selected: u ? this.selectedPlace() : null,
				component: u ? this.selectedComponent() : null
			});
		}), this.curve.update(this.view, t.importance, t.n, e), this.updateSentence(), this.updatePrediction(), this.updateReading(), this.updateSelection(), this.updateChosen(), this.updateCompare(n), this.updateComponents(), this.updateFilter(), this.updateRest(), this.saveHash(), this.askLater();
	}
	askLater() {
		if (clearTimeout(this.timer), this.host.kind === "file" || !this.view.edges || !this.view.id) return;
		let { importance: e, n: t } = this.state;
		if (n(this.view, e, t, this.asked.get(this.askKey())).exact) return;
		let { view: r } = this, i = this.askKey();
		this.timer = window.setTimeout(async () => {
			let n = ++this.asking;
			try {
				let a = await this.host.ask("run", {
					id: r.id,
					importance: e,
					n_edges: t
				});
				this.asked.set(i, a), n === this.asking && i === this.askKey() && this.later();
			} catch (e) {
				this.fail(e.message);
			}
		}, Wc);
	}
	askKey() {
		return `${this.state.view}/${this.state.importance}/${this.state.n}`;
	}
	reading() {
		return n(this.view, this.state.importance, this.state.n, this.asked.get(this.askKey()));
	}
	updateSentence() {
		let { view: e, state: t } = this, n = this.reading(), r = n.exact ? "" : "about ", i = e.prediction[0], a = n.nearest.top[0], o = i.token === a.token, s = t.n / e.graph.n_edges;
		this.sentence.replaceChildren(P("b", {}, L(s)), ` of the edges are on (${R(t.n)} of ${R(e.graph.n_edges)}), chosen by `, this.scorePicker(), ". ", "The model says ", Jc(i), "; this trace ", o ? "agrees: " : "says ", Jc(a), ". Its prediction is ", P("b", { class: n.tv <= .1 ? "good" : "" }, `${r}${z(n.tv, n.tv < .001 ? 5 : 3)}`), " away (total variation, 0 is the same).");
	}
	scorePicker() {
		let { view: e, state: t } = this;
		if (e.importances.length < 2) return P("b", {}, t.importance);
		let n = this.sentence.getRootNode().activeElement?.id === "score", r = P("select", {
			id: "score",
			"aria-label": "Score that chooses the edges",
			onchange: () => this.set({
				importance: r.value,
				compare: t.compare && t.compare.view === t.view && t.compare.importance === r.value ? null : t.compare
			}, !0)
		}, ...e.importances.map((e) => P("option", {
			value: e,
			selected: e === t.importance
		}, e)));
		return n && requestAnimationFrame(() => r.focus()), r;
	}
	updatePrediction() {
		let { view: e } = this, t = this.reading(), n = t.nearest.top, r = e.prediction, i = /* @__PURE__ */ new Map();
		for (let e of r.slice(0, Gc)) i.set(e.token, [e.probability, null]);
		for (let e of n.slice(0, Gc)) i.set(e.token, [i.get(e.token)?.[0] ?? r.find((t) => t.token === e.token)?.probability ?? null, e.probability]);
		for (let e of n) i.has(e.token) && (i.get(e.token)[1] = e.probability);
		let a = [...i].sort((e, t) => Math.max(t[1][0] ?? 0, t[1][1] ?? 0) - Math.max(e[1][0] ?? 0, e[1][1] ?? 0)).slice(0, 10), o = Math.max(...a.map(([, [e, t]]) => Math.max(e ?? 0, t ?? 0)), 1e-9), s = (e, t) => P("td", { class: `bar-cell ${t}` }, qc(e, o), P("span", {}, e === null ? "–" : e.toFixed(3))), c = t.nearest.n_edges === this.state.n ? "" : ` The trace's are those at ${L(t.nearest.size)}, the nearest size measured.`;
		this.panels.prediction.replaceChildren(P("h2", {}, "Next token"), P("table", { class: "bars" }, P("thead", {}, P("tr", {}, P("th", { scope: "col" }, "token"), P("th", {
			scope: "col",
			class: "model"
		}, "model"), P("th", {
			scope: "col",
			class: "trace"
		}, "this trace"))), P("tbody", {}, ...a.map(([e, [t, n]]) => P("tr", {}, P("th", {
			scope: "row",
			class: "token"
		}, I(e)), s(t, "model"), s(n, "trace"))))), P("p", { class: "small" }, `“–”: not among the ${n.length > 1 ? `first ${n.length}` : "tokens kept"}.${c}`));
	}
	updateReading() {
		let { view: e, state: t } = this, n = this.reading(), r = n.exact ? "" : "≈ ", i = [
			[
				"total variation",
				r + z(n.tv, 4),
				"0 is the model's own prediction, 1 shares nothing with it"
			],
			[
				"KL divergence",
				`${r}${z(n.kl, 3)} nats`,
				"from the model's prediction to the trace's"
			],
			[
				"entropy",
				`${r}${z(n.entropy, 2)} nats`,
				"of the trace's prediction"
			],
			[
				"the model's entropy",
				`${z(e.entropy, 2)} nats`,
				""
			],
			[
				"edges",
				L(t.n / e.graph.n_edges),
				""
			],
			[
				"operations",
				n.flops === null ? "–" : L(n.flops),
				"share of the full trace's that has to run"
			],
			[
				"parameters",
				n.parameters === null ? "–" : L(n.parameters),
				"share of the full trace's that is used"
			]
		], a = e.density[t.importance], o = a.size_at === null ? "never before everything" : `from ${L(a.size_at)} of the edges`;
		this.panels.reading.replaceChildren(P("h2", {}, "What it gives and costs"), P("dl", { class: "facts" }, ...i.flatMap(([e, t, n]) => [P("dt", { title: n }, e), P("dd", {}, t)])), P("p", { class: "small" }, `By ${t.importance}: TV stays ≤ 0.1 ${o}; auc_log ${z(a.auc_log)}, auc_linear ${z(a.auc_linear)}.`, n.exact ? "" : this.host.kind === "file" || !e.id ? " ≈: between two sizes that were measured." : " ≈: being measured."));
	}
	selectedPlace() {
		let e = this.state.selected, t = /^e(\d+)$/.exec(e ?? "");
		if (t) return { edge: Number(t[1]) };
		let n = /^n(\d+),(\d+)$/.exec(e ?? "");
		return n && Number(n[1]) <= this.view.levels.length && Number(n[2]) < this.view.nTokens ? {
			row: Number(n[1]),
			token: Number(n[2])
		} : null;
	}
	selectedComponent() {
		let e = /^c(\d+)$/.exec(this.state.selected ?? ""), { components: t } = this.view;
		if (!e || !t || Number(e[1]) >= t.level.length) return null;
		let n = Number(e[1]);
		return [
			t.level[n],
			t.kind[n],
			t.head[n]
		];
	}
	select(e, t) {
		if (t !== 0) return;
		let n = e === null ? null : "edge" in e ? `e${e.edge}` : `n${e.row},${e.token}`;
		this.set({ selected: n }), e && this.say(this.describe(e, this.view));
	}
	say(e) {
		this.live.textContent = e;
	}
	describe(e, t) {
		if ("edge" in e) {
			let n = this.graphs.find((e) => e.view === t).scene.indexOf(e.edge);
			return n < 0 ? `edge ${e.edge}, not kept` : this.edgeName(t, n);
		}
		let { row: n, token: r } = e, i = t.levels[n - 1], a = n === 0 ? "input" : `layer ${i.layer}, after ${i.mlp && i.n_heads ? "the block" : i.mlp ? "the MLP" : "attention"}`, o = t.readings?.nodes.get(`${n},${r}`), s = o ? `, reads ${I(t.readings.tokens[o[0][0]])}` : "";
		return `Token ${r}, ${I(t.input.tokens[r])}, ${a}${s}`;
	}
	edgeName(e, t) {
		let n = e.edges, r = e.levels[n.level[t]].layer, i = `${I(e.input.tokens[n.source[t]])} (${n.source[t]})`;
		return wc(e, n.kind[t]) === "residual" ? `Layer ${r}, residual stream of ${i}${e.kinds[n.kind[t]] === "residual_mlp" ? ", past the MLP" : e.kinds[n.kind[t]] === "residual_attention" ? ", past attention" : ""}` : n.head[t] < 0 ? `Layer ${r}, MLP at ${i}` : `Layer ${r}, head ${n.head[t]}: ${i} → ${I(e.input.tokens[n.target[t]])} (${n.target[t]})`;
	}
	hover(e, t, n, r) {
		if (!e) {
			this.tip.hidden = !0;
			return;
		}
		let i = [this.describe(e, t)];
		if ("edge" in e) {
			let n = this.graphs.find((e) => e.view === t).scene.indexOf(e.edge);
			for (let [e, r] of Object.entries(t.edges.orders)) i.push(`${e}: importance ${r.importance[n].toPrecision(3)}, on from ${L((r.rank[n] + 1) / t.graph.n_edges)}`);
			let r = t.readings?.writers.get(this.writerKeys(t, n)[0]) ?? t.readings?.writers.get(this.writerKeys(t, n)[1]);
			r && i.push(`promotes ${r[0].slice(0, 3).map((e) => I(t.readings.tokens[e])).join(" ")}`);
		}
		this.tip.replaceChildren(...i.map((e, t) => P("div", { class: t ? "small" : "" }, e))), this.tip.hidden = !1;
		let a = this.element.getBoundingClientRect(), o = Math.min(360, this.tip.offsetWidth || 300);
		this.tip.style.left = `${Math.max(4, Math.min(a.width - o - 8, n - a.left + 14))}px`, this.tip.style.top = `${Math.min(a.height - 60, r - a.top + 16)}px`;
	}
	writerKeys(e, t) {
		let n = e.edges, r = `${n.level[t]},${n.head[t]},${n.source[t]}`;
		return [`${r},-1`, `${r},${n.target[t]}`];
	}
	updateSelection() {
		let e = this.panels.selection, t = this.selectedPlace(), n = this.selectedComponent();
		if (!this.view.edges) return e.replaceChildren();
		if (n) return e.replaceChildren(...this.componentDetails(Number(this.state.selected.slice(1))));
		if (!t) return e.replaceChildren(P("h2", {}, "Selection"), P("p", { class: "small" }, "Click an edge, a node, or a square below: what it is, what it reads and what it writes."));
		e.replaceChildren(..."edge" in t ? this.edgeDetails(t.edge) : this.nodeDetails(t.row, t.token));
	}
	edgeDetails(e) {
		let { view: t, state: n } = this, r = this.graphs[0].scene.indexOf(e);
		if (r < 0) return [P("h2", {}, "Selection"), P("p", {}, `Edge ${e} is not among those kept in this page.`)];
		let i = t.edges, a = t.graph.n_edges, o = n.pinned.has(e), s = n.hidden.has(e), c = (t, n) => {
			t.has(e) ? t.delete(e) : (t.add(e), n.delete(e)), this.later();
		}, l = [
			P("h2", {}, this.edgeName(t, r)),
			P("table", { class: "plain" }, P("thead", {}, P("tr", {}, ...[
				"score",
				"importance",
				"on from",
				"place"
			].map((e) => P("th", { scope: "col" }, e)))), P("tbody", {}, ...Object.entries(i.orders).map(([e, t]) => P("tr", {}, P("th", { scope: "row" }, e), P("td", {}, t.importance[r].toPrecision(3)), P("td", {}, L((t.rank[r] + 1) / a)), P("td", {}, `${R(t.rank[r] + 1)}.`))))),
			P("div", { class: "row" }, P("button", {
				type: "button",
				"aria-pressed": String(o),
				title: "Keep this edge on, whatever the size (P)",
				onclick: () => c(n.pinned, n.hidden)
			}, o ? "Unpin" : "Pin"), P("button", {
				type: "button",
				"aria-pressed": String(s),
				title: "Take this edge out of the trace (H)",
				onclick: () => c(n.hidden, n.pinned)
			}, s ? "Put back" : "Hide"), P("button", {
				type: "button",
				onclick: () => this.set({ selected: `c${this.componentOf(r)}` })
			}, i.head[r] >= 0 ? "Whole head" : "All of its kind here"))
		];
		if (wc(t, i.kind[r]) === "residual") l.push(P("p", { class: "small" }, "It carries the stream itself; its source reads:"), ...this.lens(i.level[r], i.source[r]));
		else {
			let [n, i] = this.writerKeys(t, r), a = t.readings?.writers.get(n) ?? t.readings?.writers.get(i), o = a ? {
				tokens: a[0].map((e) => t.readings.tokens[e]),
				changes: a[1]
			} : this.ask(`e${e}`, "edge", {
				id: t.id,
				edge: e
			});
			l.push(...this.writesTable(o));
		}
		return l;
	}
	writesTable(e) {
		if (typeof e == "string") return [P("p", { class: "small" }, e)];
		let t = e.tokens.length / 2, n = Math.max(...e.changes.map(Math.abs), 1e-9), r = (r, i) => P("tbody", {}, ...e.tokens.slice(r, r + t).map((t, a) => P("tr", {}, P("th", {
			scope: "row",
			class: "token"
		}, I(t)), P("td", { class: `bar-cell ${i}` }, qc(Math.abs(e.changes[r + a]), n), P("span", {}, e.changes[r + a].toFixed(1))))));
		return [
			P("h3", {}, "What it writes"),
			P("div", { class: "two-columns" }, P("table", { class: "bars" }, P("thead", {}, P("tr", {}, P("th", {
				colspan: 2,
				scope: "colgroup"
			}, "promotes"))), r(0, "up")), P("table", { class: "bars" }, P("thead", {}, P("tr", {}, P("th", {
				colspan: 2,
				scope: "colgroup"
			}, "demotes"))), r(t, "down"))),
			P("p", { class: "small" }, "Its direction, read by the model's final norm and head as if nothing came between.")
		];
	}
	lens(e, t) {
		let { view: n } = this, r = n.readings?.nodes.get(`${e},${t}`), i = r ? {
			tokens: r[0].map((e) => n.readings.tokens[e]),
			probabilities: r[1]
		} : this.ask(`n${e},${t}`, "node", {
			id: n.id,
			row: e,
			token: t
		});
		return typeof i == "string" ? [P("p", { class: "small" }, i)] : [P("table", { class: "bars" }, P("tbody", {}, ...i.tokens.map((e, t) => P("tr", {}, P("th", {
			scope: "row",
			class: "token"
		}, I(e)), P("td", { class: "bar-cell model" }, qc(i.probabilities[t], 1), P("span", {}, i.probabilities[t].toFixed(3)))))))];
	}
	ask(e, t, n) {
		if (this.host.kind === "file" || !this.view.id) return "Not in this file, which keeps the most important only; `densitometer explore` answers for all.";
		let r = `${this.state.view}/${e}`;
		return this.details.has(r) || (this.details.set(r, "Asking the model…"), this.host.ask(t, n).then((e) => this.details.set(r, e), (e) => this.details.set(r, e.message)).finally(() => this.later())), this.details.get(r);
	}
	nodeDetails(e, t) {
		let { view: n, state: r } = this, i = n.edges, a = i.orders[r.importance], o = [], s = [];
		for (let n = 0; n < a.sorted.length && a.ranks[n] < r.n; n++) {
			let r = a.sorted[n];
			i.level[r] + 1 === e && i.target[r] === t && o.push(r), i.level[r] === e && i.source[r] === t && s.push(r);
		}
		let c = (e, t) => t.length === 0 ? P("p", { class: "small" }, `${e}: none is on.`) : P("div", {}, P("h3", {}, `${e}, ${R(t.length)}`), P("ul", { class: "edges" }, ...t.slice(0, Gc).map((e) => P("li", {}, P("button", {
			type: "button",
			class: "link",
			onclick: () => this.set({ selected: `e${i.edge[e]}` })
		}, this.edgeName(n, e)), ` ${a.importance[e].toPrecision(2)}`))));
		return [
			P("h2", {}, this.describe({
				row: e,
				token: t
			}, n).replace(/, reads .*$/, "")),
			P("h3", {}, "Logit lens: what its stream says"),
			...this.lens(e, t),
			c("Edges in", o),
			c("Edges out", s)
		];
	}
	componentOf(e) {
		let t = this.view.edges, { components: n } = this.view;
		return n.level.findIndex((r, i) => r === t.level[e] && n.kind[i] === t.kind[e] && n.head[i] === t.head[e]);
	}
	componentName(e) {
		let { view: t } = this, n = t.levels[t.components.level[e]].layer, r = t.kinds[t.components.kind[e]];
		return t.components.head[e] >= 0 ? `Layer ${n}, head ${t.components.head[e]}` : r === "mlp" ? `Layer ${n}, MLP` : `Layer ${n}, residual stream${r === "residual_mlp" ? " past the MLP" : r === "residual_attention" ? " past attention" : ""}`;
	}
	componentDetails(e) {
		let { view: t, state: n } = this, { components: i } = t, a = t.edges, o = a.orders[n.importance], s = r(t, n.importance, n.n)[e], c = [], l = 0;
		for (let t of o.sorted) a.level[t] === i.level[e] && a.kind[t] === i.kind[e] && a.head[t] === i.head[e] && (c.push(t), l += o.importance[t]);
		let u = c.length ? L((o.rank[c[0]] + 1) / t.graph.n_edges) : "beyond the edges kept", d = `${t.levels[i.level[e]].layer}/${t.kinds[i.kind[e]]}/${i.head[e]}`, f = n.hiddenComponents.has(d);
		return [
			P("h2", {}, this.componentName(e)),
			P("dl", { class: "facts" }, P("dt", {}, "edges on"), P("dd", {}, `${R(s)} of ${R(i.n_edges[e])}`), P("dt", {}, "first used"), P("dd", {}, c.length ? `at ${u} of the edges` : u), P("dt", {}, "importance, sum"), P("dd", {}, `${l.toPrecision(3)}${c.length < i.n_edges[e] ? ` (of ${R(c.length)} kept)` : ""}`)),
			P("div", { class: "row" }, P("button", {
				type: "button",
				"aria-pressed": String(f),
				onclick: () => {
					f ? n.hiddenComponents.delete(d) : n.hiddenComponents.add(d), this.later();
				}
			}, f ? "Put back" : "Hide all of it"), i.head[e] >= 0 ? P("button", {
				type: "button",
				onclick: () => {
					let n = t.levels[i.level[e]].layer;
					this.set({
						layers: [n, n],
						heads: /* @__PURE__ */ new Set([i.head[e]])
					});
				}
			}, "Draw this head only") : null),
			P("h3", {}, "Its edges, most important first"),
			P("ul", { class: "edges" }, ...c.slice(0, Gc).map((e) => P("li", {}, P("button", {
				type: "button",
				class: "link",
				onclick: () => this.set({ selected: `e${a.edge[e]}` })
			}, this.edgeName(t, e)), ` ${o.importance[e].toPrecision(2)}`)))
		];
	}
	key(e) {
		let { state: t } = this, n = this.selectedPlace(), r = n && "edge" in n ? n.edge : null, i = (e, t, n) => {
			if (r === null) return this.say("Select an edge first: E steps through the edges of a node.");
			e.has(r) ? e.delete(r) : (e.add(r), t.delete(r)), this.say(e.has(r) ? `Edge ${n}.` : `Edge no longer ${n}.`), this.later();
		}, a = {
			"[": () => this.curve.step(-1),
			"]": () => this.curve.step(1),
			"{": () => this.curve.step(-10),
			"}": () => this.curve.step(10),
			p: () => i(t.pinned, t.hidden, "pinned"),
			h: () => i(t.hidden, t.pinned, "hidden"),
			r: () => void this.runChosen(),
			"?": () => this.help.showModal()
		};
		return a[e.key] ? (a[e.key](), !0) : !1;
	}
	chosenKey() {
		let { state: e } = this, t = (e) => [...e].sort().join(" ");
		return [
			e.view,
			e.importance,
			e.n,
			t(e.pinned),
			t(e.hidden),
			t(e.hiddenComponents)
		].join("/");
	}
	updateChosen() {
		let { state: e, view: t } = this, n = this.panels.chosen;
		if (!t.edges) return n.replaceChildren();
		let r = e.pinned.size + e.hidden.size + e.hiddenComponents.size, i = [P("h2", {}, "Chosen edges")];
		if (!r && !this.ran) {
			n.replaceChildren(...i, P("p", { class: "small" }, "Pin edges to keep them on, hide edges or whole heads to take them out, then run the model with exactly what is left."));
			return;
		}
		let a = (e, t) => P("li", {}, e, " ", P("button", {
			type: "button",
			class: "link",
			"aria-label": `Undo: ${e}`,
			onclick: () => {
				t(), this.later();
			}
		}, "undo")), o = (e) => {
			let n = this.graphs[0].scene.indexOf(e);
			return n < 0 ? `edge ${e}` : this.edgeName(t, n);
		}, s = [
			...[...e.pinned].map((t) => a(`on: ${o(t)}`, () => e.pinned.delete(t))),
			...[...e.hidden].map((t) => a(`off: ${o(t)}`, () => e.hidden.delete(t))),
			...[...e.hiddenComponents].map((t) => a(`off: all of ${t.replace(/\/-1$/, "")} (layer/kind/head)`, () => e.hiddenComponents.delete(t)))
		];
		i.push(P("ul", { class: "edges" }, ...s));
		let c = P("button", {
			type: "button",
			class: "primary",
			id: "run",
			disabled: this.running || this.host.kind === "file" || !t.id,
			onclick: () => void this.runChosen()
		}, this.running ? "Running…" : "Run exactly these edges");
		if (i.push(P("div", { class: "row" }, c, r ? P("button", {
			type: "button",
			onclick: () => {
				e.pinned.clear(), e.hidden.clear(), e.hiddenComponents.clear(), this.ran = null, this.later();
			}
		}, "Undo all") : "")), this.host.kind !== "file" && t.id || i.push(P("p", { class: "small" }, "This page is a file: it has no model to run. Open the text with `densitometer explore`.")), this.ran) {
			let { point: t, key: n } = this.ran, r = this.reading();
			i.push(P("table", { class: "plain result" }, P("thead", {}, P("tr", {}, P("th", { scope: "col" }, ""), P("th", { scope: "col" }, "by the score"), P("th", { scope: "col" }, "as chosen"))), P("tbody", {}, P("tr", {}, P("th", { scope: "row" }, "edges"), P("td", {}, R(e.n)), P("td", {}, R(t.n_edges))), P("tr", {}, P("th", { scope: "row" }, "total variation"), P("td", {}, `${r.exact ? "" : "≈ "}${z(r.tv, 4)}`), P("td", { id: "ran-tv" }, z(t.tv, 4))), P("tr", {}, P("th", { scope: "row" }, "entropy"), P("td", {}, z(r.entropy, 2)), P("td", {}, z(t.entropy, 2))), P("tr", {}, P("th", { scope: "row" }, "operations"), P("td", {}, r.flops === null ? "–" : L(r.flops)), P("td", {}, L(t.flops_share))), P("tr", {}, P("th", { scope: "row" }, "first tokens"), P("td", {}, r.nearest.top.slice(0, 3).map((e) => I(e.token)).join(" ")), P("td", {}, t.top.slice(0, 3).map((e) => I(e.token)).join(" "))))), n === this.chosenKey() ? "" : P("p", { class: "small" }, "The choice has changed since it was run."));
		}
		let l = n.getRootNode().activeElement?.id === "run";
		n.replaceChildren(...i), l && n.querySelector("#run")?.focus();
	}
	async runChosen() {
		let { state: e, view: t } = this;
		if (this.running || this.host.kind === "file" || !t.id) return;
		let n = this.chosenKey();
		this.running = !0, this.fail(null), this.update();
		try {
			let r = await this.host.ask("run", {
				id: t.id,
				importance: e.importance,
				n_edges: e.n,
				pinned: [...e.pinned],
				hidden: [...e.hidden],
				hidden_components: [...e.hiddenComponents].map((e) => {
					let [t, n, r] = e.split("/");
					return [
						Number(t),
						n,
						Number(r)
					];
				})
			});
			this.ran = {
				key: n,
				point: r
			}, this.say(`Run with ${R(r.n_edges)} edges: total variation ${z(r.tv, 4)}.`);
		} catch (e) {
			this.fail(e.message);
		} finally {
			this.running = !1, this.update();
		}
	}
	updateCompare(e) {
		let r = this.panels.compare, { state: i } = this;
		if (!this.view.edges) return r.replaceChildren();
		let a = r.getRootNode().activeElement?.id, o = [];
		this.views.forEach((e, t) => {
			if (e.edges) for (let n of e.importances) (t !== i.view || n !== i.importance) && o.push([`${t}:${n}`, this.views.length > 1 ? `${t + 1}. ${this.sideName({
				view: t,
				importance: n
			})}` : `score ${n}`]);
		});
		let s = i.compare ? `${i.compare.view}:${i.compare.importance}` : "", u = P("select", {
			id: "compare",
			"aria-label": "Compare with",
			onchange: () => {
				let [e, t] = u.value.split(/:(.*)/);
				this.set({ compare: u.value ? {
					view: Number(e),
					importance: t
				} : null }, !0);
			}
		}, P("option", {
			value: "",
			selected: !s
		}, "nothing"), ...o.map(([e, t]) => P("option", {
			value: e,
			selected: e === s
		}, t))), d = [P("h2", {}, "Compare with"), u];
		if (this.views.length > 1) {
			let e = P("select", {
				id: "own-view",
				"aria-label": "Text shown on the left",
				onchange: () => {
					let n = this.views[Number(e.value)];
					this.set({
						view: Number(e.value),
						importance: n.importances[0],
						n: t(n, i.n / this.view.graph.n_edges * n.graph.n_edges),
						compare: null,
						selected: null,
						pinned: /* @__PURE__ */ new Set(),
						hidden: /* @__PURE__ */ new Set(),
						hiddenComponents: /* @__PURE__ */ new Set(),
						zoom: null
					}, !0);
				}
			}, ...this.views.map((e, t) => P("option", {
				value: String(t),
				selected: t === i.view
			}, `${t + 1}. ${this.sideName({
				view: t,
				importance: e.importances[0]
			})}`)));
			d.push(P("label", { class: "small" }, "shown on the left: ", e));
		}
		if (this.host.kind === "server") {
			let e = r.querySelector("form.other");
			d.push(e ?? this.otherForm());
		}
		if (e.length > 1) {
			let [t, r] = e, i = n(t.view, t.side.importance, t.n, this.asked.get(this.askKey())), a = n(r.view, r.side.importance, r.n), o = [
				[
					"edges on",
					R(t.n),
					R(r.n)
				],
				[
					"share",
					L(t.n / t.view.graph.n_edges),
					L(r.n / r.view.graph.n_edges)
				],
				[
					"total variation",
					(i.exact ? "" : "≈ ") + z(i.tv, 3),
					(a.exact ? "" : "≈ ") + z(a.tv, 3)
				],
				["TV ≤ 0.1 from", ...[t, r].map(({ view: e, side: t }) => e.density[t.importance].size_at === null ? "–" : L(e.density[t.importance].size_at))]
			];
			if (d.push(P("table", { class: "plain" }, P("thead", {}, P("tr", {}, ...[
				"",
				"left",
				"right"
			].map((e) => P("th", { scope: "col" }, e)))), P("tbody", {}, ...o.map(([e, t, n]) => P("tr", {}, P("th", { scope: "row" }, e), P("td", {}, t), P("td", {}, n)))))), c(t.view, r.view)) {
				let e = l(t.view, t.side.importance, t.n, r.view, r.side.importance, r.n);
				d.push(P("dl", {
					class: "facts",
					id: "overlap"
				}, P("dt", {}, "edges in both"), P("dd", {}, R(e.shared)), P("dt", { title: "edges in both / edges in either" }, "overlap of edges"), P("dd", {}, e.jaccard === null ? "–" : L(e.jaccard)), P("dt", { title: "components used by both / by either" }, "overlap of components"), P("dd", {}, e.components === null ? "–" : L(e.components))), P("p", { class: "small" }, `Grey: in both. Coloured: on this side only. Tokens are aligned from the last one.${e.exact ? "" : ` Of the edges kept: ${R(e.first)} and ${R(e.second)}.`}`));
			} else d.push(P("p", { class: "small" }, "The two models are not of one shape: their edges have no counterparts, so there is no overlap."));
		}
		r.replaceChildren(...d), a && r.querySelector(`#${a}`)?.focus();
	}
	otherForm() {
		let e = P("input", {
			type: "text",
			id: "other-text",
			"aria-label": "Another text to compare with",
			placeholder: "another text…",
			autocomplete: "off"
		}), t = P("button", { type: "submit" }, "Compare");
		return P("form", {
			class: "other",
			onsubmit: async (n) => {
				n.preventDefault(), this.running || await this.busy(t, "Measuring…", async () => {
					let t = Fc(await this.host.ask("measure", {
						text: e.value,
						importance: [this.state.importance]
					}));
					t.kind === "traces" && this.addViews(t);
				});
			}
		}, e, t);
	}
	updateComponents() {
		let e = this.panels.components, { view: t, state: n, palette: i } = this;
		if (!t.edges) return e.replaceChildren();
		let { components: a } = t, o = r(t, n.importance, n.n), s = [...new Set(t.levels.map((e) => e.layer))].reverse(), c = Math.max(...t.levels.map((e) => e.n_heads)), l = e.querySelector(".matrix");
		if (!l || l.dataset.view !== String(n.view)) {
			let r = [];
			for (let e of s) {
				let i = P("div", {
					role: "row",
					class: "matrix-row"
				}, P("span", {
					class: "small",
					role: "rowheader"
				}, String(e))), o = a.level.map((e, t) => [e, t]).filter(([n]) => t.levels[n].layer === e).map(([, e]) => e), s = (e) => a.head[e] >= 0 ? a.head[e] : t.kinds[a.kind[e]] === "mlp" ? 1e6 : 2e6;
				o.sort((e, t) => s(e) - s(t));
				for (let e of o) {
					let r = a.head[e] >= 0 ? "" : t.kinds[a.kind[e]] === "mlp" ? " mlp" : " residual";
					i.append(P("button", {
						type: "button",
						role: "gridcell",
						tabIndex: -1,
						class: `cell${r}`,
						onclick: () => this.set({ selected: n.selected === `c${e}` ? null : `c${e}` })
					})), i.lastChild.dataset.c = String(e);
				}
				r.push(i);
			}
			l = P("div", {
				class: "matrix",
				role: "grid",
				"aria-label": "Components by layer: how much of each is on",
				onkeydown: (e) => this.moveInMatrix(e)
			}, ...r), l.dataset.view = String(n.view), l.style.setProperty("--cell", `${Math.max(6, Math.min(22, Math.floor(330 / (c + 4))))}px`), e.replaceChildren(P("h2", {}, "Heads and MLPs in the trace"), P("p", { class: "small" }, `A row a layer, the last on top; ${c} heads, then MLP (orange) and residual (grey). The fuller, the more of its edges are on.`), l), l.querySelector(".cell").tabIndex = 0;
		}
		for (let e of l.querySelectorAll(".cell")) {
			let r = Number(e.dataset.c), s = a.n_edges[r] ? o[r] / a.n_edges[r] : 0, l = t.kinds[a.kind[r]], u = a.head[r] >= 0 ? Rr(a.head[r], c, i) : l === "mlp" ? i.mlp : i.residual;
			e.style.setProperty("--fill", u), e.style.setProperty("--share", o[r] ? String(.15 + .85 * Math.sqrt(s)) : "0");
			let d = `${this.componentName(r)}: ${R(o[r])} of ${R(a.n_edges[r])} edges on`;
			e.setAttribute("aria-label", d), e.title = d, e.setAttribute("aria-selected", String(n.selected === `c${r}`));
		}
	}
	moveInMatrix(e) {
		let t = {
			ArrowLeft: [0, -1],
			ArrowRight: [0, 1],
			ArrowUp: [-1, 0],
			ArrowDown: [1, 0]
		}[e.key];
		if (!t) return;
		e.preventDefault();
		let n = [...this.panels.components.querySelectorAll(".matrix-row")].map((e) => [...e.querySelectorAll(".cell")]), r = n.findIndex((t) => t.includes(e.target)), i = n[Math.max(0, Math.min(n.length - 1, r + t[0]))], a = n[r].indexOf(e.target) + t[1], o = i[Math.max(0, Math.min(i.length - 1, a))];
		e.target.tabIndex = -1, o.tabIndex = 0, o.focus();
	}
	updateFilter() {
		let e = this.panels.filter, { view: t, state: n } = this;
		if (!t.edges) return e.replaceChildren();
		let r = e.getRootNode().activeElement?.id;
		if (r && e.querySelector(`#${r}`) && r.startsWith("f-text")) return;
		let i = [t.levels[0].layer, t.levels[t.levels.length - 1].layer], a = {
			residual_attention: "residual, past attention",
			residual_mlp: "residual, past the MLP",
			residual: "residual",
			attention: "attention",
			mlp: "MLP"
		}, o = t.kinds.map((e) => P("label", { class: "check" }, P("input", {
			type: "checkbox",
			id: `f-${e}`,
			checked: !n.kinds.has(e),
			onchange: (t) => {
				t.target.checked ? n.kinds.delete(e) : n.kinds.add(e), this.later();
			}
		}), ` ${a[e] ?? e}`)), s = (e, t) => P("input", {
			type: "number",
			id: `f-layer${e}`,
			"aria-label": t,
			min: String(i[0]),
			max: String(i[1]),
			value: String((n.layers ?? i)[e]),
			onchange: (t) => {
				let r = Math.max(i[0], Math.min(i[1], Number(t.target.value) || i[0])), a = [...n.layers ?? i];
				a[e] = r, this.set({ layers: a[0] === i[0] && a[1] === i[1] ? null : a });
			}
		}), c = P("input", {
			type: "text",
			id: "f-text-heads",
			"aria-label": "Heads that are drawn, by commas; empty for all",
			placeholder: "all",
			value: n.heads ? [...n.heads].join(", ") : "",
			onchange: () => {
				let e = c.value.split(/[\s,]+/).filter((e) => /^\d+$/.test(e)).map(Number);
				this.set({ heads: c.value.trim() ? new Set(e) : null });
			}
		}), l = n.kinds.size || n.layers || n.heads;
		e.replaceChildren(P("h2", {}, "What is drawn"), P("div", { class: "checks" }, ...o), P("div", { class: "row" }, P("span", {}, "layers "), s(0, "First layer drawn"), P("span", {}, " to "), s(1, "Last layer drawn"), P("span", {}, " heads "), c), l ? P("div", { class: "row" }, P("button", {
			type: "button",
			id: "f-all",
			onclick: () => this.set({
				kinds: /* @__PURE__ */ new Set(),
				layers: null,
				heads: null
			})
		}, "Draw everything")) : P("span", {})), r && e.querySelector(`#${r}`)?.focus();
	}
	updateRest() {
		let e = this.panels.rest, { view: t, state: n, palette: r } = this, i = t.edges;
		if (!i) return e.replaceChildren();
		let a = t.graph.n_edges;
		if (i.kept === a) {
			e.replaceChildren(P("p", { class: "small" }, `All ${R(a)} edges are in this page.`));
			return;
		}
		let o = i.orders[n.importance], s = 0;
		for (; s < o.ranks.length && o.ranks[s] < n.n;) s++;
		let c = t.histograms[n.importance], l = Math.max(...c.all.map(Math.log1p), 1), u = 372 / c.all.length, d = c.all.flatMap((e, t) => [[e, r.faint], [c.kept[t], r.accent]].map(([e, n]) => {
			let r = 60 * Math.log1p(Number(e)) / l;
			return F("rect", {
				x: t * u,
				y: 64 - r,
				width: u - 1,
				height: r,
				fill: String(n)
			}, F("title", {}, `${R(Number(e))} edges`));
		}));
		e.replaceChildren(P("h2", {}, "What is not drawn"), P("p", {
			class: "small",
			id: "kept"
		}, `This page keeps ${R(i.kept)} of ${R(a)} edges. Every edge of a trace is there up to ${L(i.exactTo / a)}; at this size ${R(s)} of ${R(n.n)}. Counts, costs and the squares above are exact at every size.`), F("svg", {
			viewBox: "0 0 372 82",
			class: "histogram",
			role: "img",
			"aria-label": "Edges by importance, all and kept, log scale"
		}, ...d, F("text", {
			x: 0,
			y: 78,
			"font-size": 10,
			fill: r.muted
		}, `importance 1e${c.from.toFixed(1)}`), F("text", {
			x: 372,
			y: 78,
			"font-size": 10,
			fill: r.muted,
			"text-anchor": "end"
		}, `1e${c.to.toFixed(1)}${c.zero ? `, ${R(c.zero)} at 0` : ""}`)), P("p", { class: "small" }, "Light: all edges; blue: those in this page."));
	}
	legend() {
		let e = (...e) => F("svg", {
			viewBox: "0 0 26 16",
			width: 26,
			height: 16,
			"aria-hidden": "true"
		}, ...e);
		return P("p", { class: "legend small" }, P("span", {}, e(F("line", {
			x1: 13,
			x2: 13,
			y1: 1,
			y2: 15,
			class: "l-residual"
		})), "residual"), P("span", {}, e(F("path", {
			d: "M2 15C2 6 24 10 24 1",
			class: "l-attention"
		})), "attention, a colour a head"), P("span", {}, e(F("path", {
			d: "M9 15C17 11 17 5 9 1",
			class: "l-mlp"
		}), F("rect", {
			x: 11,
			y: 5,
			width: 6,
			height: 6,
			class: "l-mlp-square"
		})), "MLP"), P("span", {}, e(F("circle", {
			cx: 13,
			cy: 8,
			r: 4.5,
			class: "l-output"
		})), "output"), P("span", { id: "keys" }, "drag: pan · wheel: zoom · 0: reset · F: whole text · ?: keys"));
	}
};
function qc(e, t) {
	let n = P("i", { "aria-hidden": "true" });
	return n.style.width = `${100 * (e ?? 0) / t}%`, n;
}
function Jc({ token: e, probability: t }) {
	return P("span", { class: "nowrap" }, P("code", {}, I(e)), ` ${t.toFixed(2)}`);
}
function Yc() {
	return P("dialog", { "aria-labelledby": "help-title" }, P("h2", { id: "help-title" }, "What this shows"), P("p", {}, "The model's computation of one next token, as a graph: a column a token, a row a half-layer, the output at the top right. Edges carry vectors; each is scored. A trace takes the most important edges first, starting from the output, and the model is run with those alone."), P("p", {}, "Move the size and watch the prediction come back. The curve tells how far the trace's prediction is from the model's at each size; the triangle marks from where on it stays within 0.1; the dashed lines mark the sizes below which not even the output token's own path fits."), P("h2", {}, "Keys"), P("dl", { class: "facts keys" }, ...[
		["Tab", "from one part to the next"],
		["← → on the size", "smaller, larger; Page keys in larger steps, Home and End to the ends"],
		["arrows on the graph", "move the cursor between nodes; with Shift, pan"],
		["E, Shift+E", "step through the edges at the cursor"],
		["Enter", "select the node at the cursor; Escape lets go"],
		["P, H", "pin or hide the selected edge"],
		["R", "run exactly the chosen edges (with a server)"],
		["[ ]", "smaller, larger, while on the graph; { } in larger steps"],
		["+ − 0 F", "zoom in, out, reset, whole text"]
	].flatMap(([e, t]) => [P("dt", {}, P("kbd", {}, e)), P("dd", {}, t)])), P("form", { method: "dialog" }, P("button", {}, "Close")));
}
// src/host.ts
var Xc = {
	kind: "file",
	ask: () => Promise.reject(/* @__PURE__ */ Error("This page is a file: it has no model behind it. Open it with `densitometer explore`."))
}, Zc = "The server has stopped answering. Start it again with `densitometer explore` and open the address that it prints.", Qc = 6e5, $c = {
	kind: "server",
	async ask(e, t) {
		let n;
		try {
			n = await fetch(`ask/${e}`, {
				method: "POST",
				headers: { "Content-Type": "application/json" },
				body: JSON.stringify(t),
				signal: AbortSignal.timeout(Qc)
			});
		} catch {
			throw Error(Zc);
		}
		let r;
		try {
			r = await n.json();
		} catch {
			throw Error(n.ok ? Zc : `The server answered with ${n.status}.`);
		}
		if (!n.ok) throw Error(r?.error ?? `The server answered with ${n.status}.`);
		return r;
	}
};
function el(e) {
	let t = /* @__PURE__ */ new Map(), n = 0;
	return e.on("msg:custom", (e) => {
		let n = t.get(e?.number);
		n && (t.delete(e.number), e.error ? n.reject(Error(e.error)) : n.resolve(e.answer));
	}), {
		kind: "notebook",
		ask: (r, i) => new Promise((a, o) => {
			t.set(++n, {
				resolve: a,
				reject: o
			});
			let s = n;
			e.send({
				number: s,
				method: r,
				parameters: i
			}), setTimeout(() => {
				t.delete(s) && o(/* @__PURE__ */ Error("The notebook's kernel does not answer. Run the cell again."));
			}, Qc);
		})
	};
}
// src/style.css?inline
var tl = ":host{height:100%;display:block}*{box-sizing:border-box}.explorer{--ground:#fff;--panel:#f6f7f9;--ink:#1b1f24;--muted:#57606a;--line:#d0d7de;--accent:#0b57d0;--on-accent:#fff;--residual:#6e7781;--mlp:#b35900;--good:#116329;--bad:#a40e26;--bad-ground:#ffebe9;background:var(--ground);height:100%;color:var(--ink);--lightningcss-light:initial;--lightningcss-dark: ;color-scheme:light;flex-direction:column;font:13px/1.45 system-ui,-apple-system,Segoe UI,Roboto,Noto Sans,sans-serif;display:flex;position:relative}.explorer[data-theme=dark]{--ground:#0f1419;--panel:#171d24;--ink:#e6edf3;--muted:#9aa7b4;--line:#30363d;--accent:#7ab8ff;--on-accent:#0b1015;--residual:#8b98a5;--mlp:#ffa657;--good:#56d364;--bad:#ff9a92;--bad-ground:#3b1215;--lightningcss-light: ;--lightningcss-dark:initial;color-scheme:dark}.tokens>div{flex-direction:column;flex:1;min-height:0;display:flex}h1{font-size:18px}h2{margin:0 0 6px;font-size:13px}h3{color:var(--muted);margin:8px 0 2px;font-size:12px;font-weight:600}p{margin:4px 0}code,kbd{background:color-mix(in srgb, var(--muted) 16%, transparent);white-space:pre;border-radius:3px;padding:0 3px;font:12px/1.4 ui-monospace,SF Mono,DejaVu Sans Mono,monospace}.muted,.small{color:var(--muted)}.small{font-size:12px}.nowrap{white-space:nowrap}.good{color:var(--good)}.sr{clip-path:inset(50%);white-space:nowrap;width:1px;height:1px;position:absolute;overflow:hidden}button,select,input[type=text],input[type=number],summary{font:inherit;color:inherit;background:var(--ground);border:1px solid var(--line);border-radius:5px;min-height:26px;padding:2px 8px}button,summary,select{cursor:pointer}button:hover:not(:disabled),summary:hover{border-color:var(--accent)}button:disabled{opacity:.6;cursor:default}button[aria-pressed=true]{background:var(--accent);color:var(--on-accent);border-color:var(--accent)}button.primary{background:var(--accent);color:var(--on-accent);border-color:var(--accent);font-weight:600}button.link{min-height:0;color:var(--accent);text-align:left;background:0 0;border:0;padding:0;text-decoration:underline}:focus-visible{outline:2px solid var(--accent);outline-offset:2px}input[type=number]{width:58px}.bar{border-bottom:1px solid var(--line);background:var(--panel);flex-wrap:wrap;align-items:center;gap:14px;padding:8px 14px;display:flex}.title{flex-direction:column;line-height:1.25;display:flex}.title .muted{font-size:12px}.prompt{text-overflow:ellipsis;white-space:nowrap;flex:200px;min-width:0;font-size:14px;overflow:hidden}.buttons{flex-wrap:wrap;align-items:center;gap:8px;margin-left:auto;display:flex}.measure{flex:320px;gap:8px;display:flex}.measure input[type=text]{flex:1;min-width:120px;font-size:14px}.menu{position:relative}.menu summary{list-style:none}.menu>div{z-index:5;background:var(--ground);border:1px solid var(--line);white-space:nowrap;border-radius:6px;flex-direction:column;gap:6px;margin-top:4px;padding:8px;display:flex;position:absolute;right:0;box-shadow:0 4px 16px #00000040}.notice{background:var(--bad-ground);color:var(--bad);border-bottom:1px solid var(--bad);justify-content:space-between;align-items:center;gap:12px;padding:8px 14px;display:flex}.notice[hidden],.tip[hidden]{display:none}main{flex:1;min-height:0;display:flex}.left{flex-direction:column;flex:1;min-width:0;display:flex}.sentence{border-bottom:1px solid var(--line);margin:0;padding:8px 14px;font-size:14px}.stage{flex:1;min-height:200px;display:flex}.side{flex-direction:column;flex:1;min-width:0;display:flex}.stage.two .side+.side{border-left:1px solid var(--line)}.side-name{color:var(--muted);text-overflow:ellipsis;white-space:nowrap;padding:4px 14px;font-size:12px;overflow:hidden}.graph{flex:1;min-height:0;position:relative;overflow:hidden}.graph canvas{touch-action:none;cursor:grab;width:100%;height:100%;display:block;position:absolute;inset:0}.graph canvas:focus-visible{outline-offset:-3px}.empty{max-width:60ch;padding:30px}.legend{border-top:1px solid var(--line);flex-wrap:wrap;align-items:center;gap:16px;margin:0;padding:4px 14px 6px;display:flex}.legend span{align-items:center;gap:4px;display:inline-flex}.legend svg *{fill:none;stroke-width:2px}.legend .l-residual{stroke:var(--residual)}.legend .l-attention{stroke:#4f9d5d}.legend .l-mlp{stroke:var(--mlp)}.legend .l-mlp-square{fill:var(--mlp)}.legend .l-output{fill:var(--accent)}#keys{margin-left:auto}.panels{border-left:1px solid var(--line);background:var(--panel);flex:none;width:404px;padding:4px 16px 24px;overflow-y:auto}.panels section{border-bottom:1px solid var(--line);padding:10px 0}.panels section:empty{display:none}.panels section:last-child{border-bottom:0}.size-box svg.curve{cursor:crosshair;touch-action:none;width:372px;display:block}.slider{padding-left:26px;padding-right:4px}input.size{width:100%;accent-color:var(--accent);height:20px;margin:0}.chips{flex-wrap:wrap;gap:5px;margin-top:4px;display:flex}.chips button{border-radius:12px;min-height:24px;padding:1px 7px;font-size:12px}table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:400}thead th{color:var(--muted);font-size:12px}table.plain td,table.plain th{padding:1px 6px 1px 0}table.plain td{font-variant-numeric:tabular-nums}.bars th.token{white-space:pre;text-overflow:ellipsis;max-width:130px;padding-right:8px;font:12px/1.4 ui-monospace,SF Mono,DejaVu Sans Mono,monospace;overflow:hidden}.bar-cell{font-variant-numeric:tabular-nums;width:36%;height:19px;padding:0 4px;font-size:12px;position:relative}.bar-cell i{opacity:.3;background:var(--muted);border-radius:2px;position:absolute;top:2px;bottom:2px;left:0}.bar-cell.trace i,.bar-cell.up i{background:var(--accent)}.bar-cell.down i{background:var(--mlp)}.bar-cell span{padding-left:4px;position:relative}.two-columns{grid-template-columns:1fr 1fr;gap:12px;display:grid}.two-columns .bar-cell{width:50%}.facts{grid-template-columns:auto 1fr;gap:1px 14px;margin:4px 0;display:grid}.facts.wide{grid-template-columns:1fr auto}.facts dt{color:var(--muted)}.facts dd{font-variant-numeric:tabular-nums;margin:0}ul.edges{margin:2px 0;padding:0;font-size:12px;list-style:none}ul.edges li{padding:1px 0}.row{flex-wrap:wrap;align-items:center;gap:8px;margin:6px 0;display:flex}.checks{flex-wrap:wrap;gap:2px 14px;display:flex}#compare,#own-view{max-width:100%}.other{gap:8px;margin:8px 0;display:flex}.other input{flex:1;min-width:0}#f-text-heads{width:80px}.matrix{overflow-x:auto}.matrix-row{align-items:center;gap:1px;margin-bottom:1px;display:flex}.matrix-row>span{text-align:right;flex:none;width:22px;padding-right:4px}.cell{width:var(--cell);height:var(--cell);border:1px solid var(--line);background:color-mix(in srgb, var(--fill) calc(100% * var(--share)), var(--ground));border-radius:2px;flex:none;min-width:0;min-height:0;padding:0}.cell.mlp{border-radius:0;margin-left:5px}.cell.residual{border-radius:50%}.cell[aria-selected=true]{outline:2px solid var(--ink)}.histogram{width:372px}.tip{z-index:6;pointer-events:none;background:var(--ground);max-width:360px;color:var(--ink);border:1px solid var(--line);border-radius:6px;padding:5px 9px;position:absolute;box-shadow:0 3px 12px #00000038}dialog{background:var(--ground);max-width:620px;color:var(--ink);border:1px solid var(--line);border-radius:8px;padding:18px 22px}dialog::backdrop{background:#00000073}.keys{margin-bottom:14px}.failure{color:#1b1f24;background:#fff;max-width:70ch;height:100%;margin:auto;padding:40px;font:15px/1.5 system-ui,sans-serif}.strip-box{border-bottom:1px solid var(--line);padding:8px 14px 4px}.strip{cursor:pointer;width:100%;height:44px;display:block}.text{flex:1;padding:18px 22px;font:16px/2 ui-monospace,SF Mono,DejaVu Sans Mono,monospace;position:relative;overflow-y:auto}.word{cursor:pointer;white-space:pre-wrap;overflow-wrap:anywhere;border-radius:3px;margin:0 1px;padding:2px 1px}.word[aria-selected=true]{outline:2px solid var(--accent);outline-offset:1px}.hatched{background-image:repeating-linear-gradient(45deg, transparent 0 3px, color-mix(in srgb, var(--muted) 35%, transparent) 3px 4px)}.waiting{cursor:progress}@media (max-width:900px){main{flex-direction:column;overflow-y:auto}.left{min-height:60vh}.panels{border-left:0;border-top:1px solid var(--line);width:auto;overflow:visible}}@media (prefers-contrast:more){.explorer{--line:var(--muted)}}";
// node_modules/d3-scale-chromatic/dist/d3-scale-chromatic.mjs
function Q(e) {
	for (var t = e.length / 6 | 0, n = Array(t), r = 0; r < t;) n[r] = "#" + e.slice(r * 6, ++r * 6);
	return n;
}
Q("1f77b4ff7f0e2ca02cd627289467bd8c564be377c27f7f7fbcbd2217becf"), Q("7fc97fbeaed4fdc086ffff99386cb0f0027fbf5b17666666"), Q("1b9e77d95f027570b3e7298a66a61ee6ab02a6761d666666"), Q("4269d0efb118ff725c6cc5b03ca951ff8ab7a463f297bbf59c6b4e9498a0"), Q("a6cee31f78b4b2df8a33a02cfb9a99e31a1cfdbf6fff7f00cab2d66a3d9affff99b15928"), Q("fbb4aeb3cde3ccebc5decbe4fed9a6ffffcce5d8bdfddaecf2f2f2"), Q("b3e2cdfdcdaccbd5e8f4cae4e6f5c9fff2aef1e2cccccccc"), Q("e41a1c377eb84daf4a984ea3ff7f00ffff33a65628f781bf999999"), Q("66c2a5fc8d628da0cbe78ac3a6d854ffd92fe5c494b3b3b3"), Q("8dd3c7ffffb3bebadafb807280b1d3fdb462b3de69fccde5d9d9d9bc80bdccebc5ffed6f"), Q("4e79a7f28e2ce1575976b7b259a14fedc949af7aa1ff9da79c755fbab0ab");
var $ = (e) => vt(e[e.length - 1]);
$([
	,
	,
	,
	"d8b365f5f5f55ab4ac",
	"a6611adfc27d80cdc1018571",
	"a6611adfc27df5f5f580cdc1018571",
	"8c510ad8b365f6e8c3c7eae55ab4ac01665e",
	"8c510ad8b365f6e8c3f5f5f5c7eae55ab4ac01665e",
	"8c510abf812ddfc27df6e8c3c7eae580cdc135978f01665e",
	"8c510abf812ddfc27df6e8c3f5f5f5c7eae580cdc135978f01665e",
	"5430058c510abf812ddfc27df6e8c3c7eae580cdc135978f01665e003c30",
	"5430058c510abf812ddfc27df6e8c3f5f5f5c7eae580cdc135978f01665e003c30"
].map(Q)), $([
	,
	,
	,
	"af8dc3f7f7f77fbf7b",
	"7b3294c2a5cfa6dba0008837",
	"7b3294c2a5cff7f7f7a6dba0008837",
	"762a83af8dc3e7d4e8d9f0d37fbf7b1b7837",
	"762a83af8dc3e7d4e8f7f7f7d9f0d37fbf7b1b7837",
	"762a839970abc2a5cfe7d4e8d9f0d3a6dba05aae611b7837",
	"762a839970abc2a5cfe7d4e8f7f7f7d9f0d3a6dba05aae611b7837",
	"40004b762a839970abc2a5cfe7d4e8d9f0d3a6dba05aae611b783700441b",
	"40004b762a839970abc2a5cfe7d4e8f7f7f7d9f0d3a6dba05aae611b783700441b"
].map(Q)), $([
	,
	,
	,
	"e9a3c9f7f7f7a1d76a",
	"d01c8bf1b6dab8e1864dac26",
	"d01c8bf1b6daf7f7f7b8e1864dac26",
	"c51b7de9a3c9fde0efe6f5d0a1d76a4d9221",
	"c51b7de9a3c9fde0eff7f7f7e6f5d0a1d76a4d9221",
	"c51b7dde77aef1b6dafde0efe6f5d0b8e1867fbc414d9221",
	"c51b7dde77aef1b6dafde0eff7f7f7e6f5d0b8e1867fbc414d9221",
	"8e0152c51b7dde77aef1b6dafde0efe6f5d0b8e1867fbc414d9221276419",
	"8e0152c51b7dde77aef1b6dafde0eff7f7f7e6f5d0b8e1867fbc414d9221276419"
].map(Q)), $([
	,
	,
	,
	"998ec3f7f7f7f1a340",
	"5e3c99b2abd2fdb863e66101",
	"5e3c99b2abd2f7f7f7fdb863e66101",
	"542788998ec3d8daebfee0b6f1a340b35806",
	"542788998ec3d8daebf7f7f7fee0b6f1a340b35806",
	"5427888073acb2abd2d8daebfee0b6fdb863e08214b35806",
	"5427888073acb2abd2d8daebf7f7f7fee0b6fdb863e08214b35806",
	"2d004b5427888073acb2abd2d8daebfee0b6fdb863e08214b358067f3b08",
	"2d004b5427888073acb2abd2d8daebf7f7f7fee0b6fdb863e08214b358067f3b08"
].map(Q)), $([
	,
	,
	,
	"ef8a62f7f7f767a9cf",
	"ca0020f4a58292c5de0571b0",
	"ca0020f4a582f7f7f792c5de0571b0",
	"b2182bef8a62fddbc7d1e5f067a9cf2166ac",
	"b2182bef8a62fddbc7f7f7f7d1e5f067a9cf2166ac",
	"b2182bd6604df4a582fddbc7d1e5f092c5de4393c32166ac",
	"b2182bd6604df4a582fddbc7f7f7f7d1e5f092c5de4393c32166ac",
	"67001fb2182bd6604df4a582fddbc7d1e5f092c5de4393c32166ac053061",
	"67001fb2182bd6604df4a582fddbc7f7f7f7d1e5f092c5de4393c32166ac053061"
].map(Q)), $([
	,
	,
	,
	"ef8a62ffffff999999",
	"ca0020f4a582bababa404040",
	"ca0020f4a582ffffffbababa404040",
	"b2182bef8a62fddbc7e0e0e09999994d4d4d",
	"b2182bef8a62fddbc7ffffffe0e0e09999994d4d4d",
	"b2182bd6604df4a582fddbc7e0e0e0bababa8787874d4d4d",
	"b2182bd6604df4a582fddbc7ffffffe0e0e0bababa8787874d4d4d",
	"67001fb2182bd6604df4a582fddbc7e0e0e0bababa8787874d4d4d1a1a1a",
	"67001fb2182bd6604df4a582fddbc7ffffffe0e0e0bababa8787874d4d4d1a1a1a"
].map(Q)), $([
	,
	,
	,
	"fc8d59ffffbf91bfdb",
	"d7191cfdae61abd9e92c7bb6",
	"d7191cfdae61ffffbfabd9e92c7bb6",
	"d73027fc8d59fee090e0f3f891bfdb4575b4",
	"d73027fc8d59fee090ffffbfe0f3f891bfdb4575b4",
	"d73027f46d43fdae61fee090e0f3f8abd9e974add14575b4",
	"d73027f46d43fdae61fee090ffffbfe0f3f8abd9e974add14575b4",
	"a50026d73027f46d43fdae61fee090e0f3f8abd9e974add14575b4313695",
	"a50026d73027f46d43fdae61fee090ffffbfe0f3f8abd9e974add14575b4313695"
].map(Q)), $([
	,
	,
	,
	"fc8d59ffffbf91cf60",
	"d7191cfdae61a6d96a1a9641",
	"d7191cfdae61ffffbfa6d96a1a9641",
	"d73027fc8d59fee08bd9ef8b91cf601a9850",
	"d73027fc8d59fee08bffffbfd9ef8b91cf601a9850",
	"d73027f46d43fdae61fee08bd9ef8ba6d96a66bd631a9850",
	"d73027f46d43fdae61fee08bffffbfd9ef8ba6d96a66bd631a9850",
	"a50026d73027f46d43fdae61fee08bd9ef8ba6d96a66bd631a9850006837",
	"a50026d73027f46d43fdae61fee08bffffbfd9ef8ba6d96a66bd631a9850006837"
].map(Q)), $([
	,
	,
	,
	"fc8d59ffffbf99d594",
	"d7191cfdae61abdda42b83ba",
	"d7191cfdae61ffffbfabdda42b83ba",
	"d53e4ffc8d59fee08be6f59899d5943288bd",
	"d53e4ffc8d59fee08bffffbfe6f59899d5943288bd",
	"d53e4ff46d43fdae61fee08be6f598abdda466c2a53288bd",
	"d53e4ff46d43fdae61fee08bffffbfe6f598abdda466c2a53288bd",
	"9e0142d53e4ff46d43fdae61fee08be6f598abdda466c2a53288bd5e4fa2",
	"9e0142d53e4ff46d43fdae61fee08bffffbfe6f598abdda466c2a53288bd5e4fa2"
].map(Q)), $([
	,
	,
	,
	"e5f5f999d8c92ca25f",
	"edf8fbb2e2e266c2a4238b45",
	"edf8fbb2e2e266c2a42ca25f006d2c",
	"edf8fbccece699d8c966c2a42ca25f006d2c",
	"edf8fbccece699d8c966c2a441ae76238b45005824",
	"f7fcfde5f5f9ccece699d8c966c2a441ae76238b45005824",
	"f7fcfde5f5f9ccece699d8c966c2a441ae76238b45006d2c00441b"
].map(Q)), $([
	,
	,
	,
	"e0ecf49ebcda8856a7",
	"edf8fbb3cde38c96c688419d",
	"edf8fbb3cde38c96c68856a7810f7c",
	"edf8fbbfd3e69ebcda8c96c68856a7810f7c",
	"edf8fbbfd3e69ebcda8c96c68c6bb188419d6e016b",
	"f7fcfde0ecf4bfd3e69ebcda8c96c68c6bb188419d6e016b",
	"f7fcfde0ecf4bfd3e69ebcda8c96c68c6bb188419d810f7c4d004b"
].map(Q)), $([
	,
	,
	,
	"e0f3dba8ddb543a2ca",
	"f0f9e8bae4bc7bccc42b8cbe",
	"f0f9e8bae4bc7bccc443a2ca0868ac",
	"f0f9e8ccebc5a8ddb57bccc443a2ca0868ac",
	"f0f9e8ccebc5a8ddb57bccc44eb3d32b8cbe08589e",
	"f7fcf0e0f3dbccebc5a8ddb57bccc44eb3d32b8cbe08589e",
	"f7fcf0e0f3dbccebc5a8ddb57bccc44eb3d32b8cbe0868ac084081"
].map(Q)), $([
	,
	,
	,
	"fee8c8fdbb84e34a33",
	"fef0d9fdcc8afc8d59d7301f",
	"fef0d9fdcc8afc8d59e34a33b30000",
	"fef0d9fdd49efdbb84fc8d59e34a33b30000",
	"fef0d9fdd49efdbb84fc8d59ef6548d7301f990000",
	"fff7ecfee8c8fdd49efdbb84fc8d59ef6548d7301f990000",
	"fff7ecfee8c8fdd49efdbb84fc8d59ef6548d7301fb300007f0000"
].map(Q)), $([
	,
	,
	,
	"ece2f0a6bddb1c9099",
	"f6eff7bdc9e167a9cf02818a",
	"f6eff7bdc9e167a9cf1c9099016c59",
	"f6eff7d0d1e6a6bddb67a9cf1c9099016c59",
	"f6eff7d0d1e6a6bddb67a9cf3690c002818a016450",
	"fff7fbece2f0d0d1e6a6bddb67a9cf3690c002818a016450",
	"fff7fbece2f0d0d1e6a6bddb67a9cf3690c002818a016c59014636"
].map(Q)), $([
	,
	,
	,
	"ece7f2a6bddb2b8cbe",
	"f1eef6bdc9e174a9cf0570b0",
	"f1eef6bdc9e174a9cf2b8cbe045a8d",
	"f1eef6d0d1e6a6bddb74a9cf2b8cbe045a8d",
	"f1eef6d0d1e6a6bddb74a9cf3690c00570b0034e7b",
	"fff7fbece7f2d0d1e6a6bddb74a9cf3690c00570b0034e7b",
	"fff7fbece7f2d0d1e6a6bddb74a9cf3690c00570b0045a8d023858"
].map(Q)), $([
	,
	,
	,
	"e7e1efc994c7dd1c77",
	"f1eef6d7b5d8df65b0ce1256",
	"f1eef6d7b5d8df65b0dd1c77980043",
	"f1eef6d4b9dac994c7df65b0dd1c77980043",
	"f1eef6d4b9dac994c7df65b0e7298ace125691003f",
	"f7f4f9e7e1efd4b9dac994c7df65b0e7298ace125691003f",
	"f7f4f9e7e1efd4b9dac994c7df65b0e7298ace125698004367001f"
].map(Q)), $([
	,
	,
	,
	"fde0ddfa9fb5c51b8a",
	"feebe2fbb4b9f768a1ae017e",
	"feebe2fbb4b9f768a1c51b8a7a0177",
	"feebe2fcc5c0fa9fb5f768a1c51b8a7a0177",
	"feebe2fcc5c0fa9fb5f768a1dd3497ae017e7a0177",
	"fff7f3fde0ddfcc5c0fa9fb5f768a1dd3497ae017e7a0177",
	"fff7f3fde0ddfcc5c0fa9fb5f768a1dd3497ae017e7a017749006a"
].map(Q)), $([
	,
	,
	,
	"edf8b17fcdbb2c7fb8",
	"ffffcca1dab441b6c4225ea8",
	"ffffcca1dab441b6c42c7fb8253494",
	"ffffccc7e9b47fcdbb41b6c42c7fb8253494",
	"ffffccc7e9b47fcdbb41b6c41d91c0225ea80c2c84",
	"ffffd9edf8b1c7e9b47fcdbb41b6c41d91c0225ea80c2c84",
	"ffffd9edf8b1c7e9b47fcdbb41b6c41d91c0225ea8253494081d58"
].map(Q)), $([
	,
	,
	,
	"f7fcb9addd8e31a354",
	"ffffccc2e69978c679238443",
	"ffffccc2e69978c67931a354006837",
	"ffffccd9f0a3addd8e78c67931a354006837",
	"ffffccd9f0a3addd8e78c67941ab5d238443005a32",
	"ffffe5f7fcb9d9f0a3addd8e78c67941ab5d238443005a32",
	"ffffe5f7fcb9d9f0a3addd8e78c67941ab5d238443006837004529"
].map(Q)), $([
	,
	,
	,
	"fff7bcfec44fd95f0e",
	"ffffd4fed98efe9929cc4c02",
	"ffffd4fed98efe9929d95f0e993404",
	"ffffd4fee391fec44ffe9929d95f0e993404",
	"ffffd4fee391fec44ffe9929ec7014cc4c028c2d04",
	"ffffe5fff7bcfee391fec44ffe9929ec7014cc4c028c2d04",
	"ffffe5fff7bcfee391fec44ffe9929ec7014cc4c02993404662506"
].map(Q));
var nl = $([
	,
	,
	,
	"ffeda0feb24cf03b20",
	"ffffb2fecc5cfd8d3ce31a1c",
	"ffffb2fecc5cfd8d3cf03b20bd0026",
	"ffffb2fed976feb24cfd8d3cf03b20bd0026",
	"ffffb2fed976feb24cfd8d3cfc4e2ae31a1cb10026",
	"ffffccffeda0fed976feb24cfd8d3cfc4e2ae31a1cb10026",
	"ffffccffeda0fed976feb24cfd8d3cfc4e2ae31a1cbd0026800026"
].map(Q));
$([
	,
	,
	,
	"deebf79ecae13182bd",
	"eff3ffbdd7e76baed62171b5",
	"eff3ffbdd7e76baed63182bd08519c",
	"eff3ffc6dbef9ecae16baed63182bd08519c",
	"eff3ffc6dbef9ecae16baed64292c62171b5084594",
	"f7fbffdeebf7c6dbef9ecae16baed64292c62171b5084594",
	"f7fbffdeebf7c6dbef9ecae16baed64292c62171b508519c08306b"
].map(Q)), $([
	,
	,
	,
	"e5f5e0a1d99b31a354",
	"edf8e9bae4b374c476238b45",
	"edf8e9bae4b374c47631a354006d2c",
	"edf8e9c7e9c0a1d99b74c47631a354006d2c",
	"edf8e9c7e9c0a1d99b74c47641ab5d238b45005a32",
	"f7fcf5e5f5e0c7e9c0a1d99b74c47641ab5d238b45005a32",
	"f7fcf5e5f5e0c7e9c0a1d99b74c47641ab5d238b45006d2c00441b"
].map(Q)), $([
	,
	,
	,
	"f0f0f0bdbdbd636363",
	"f7f7f7cccccc969696525252",
	"f7f7f7cccccc969696636363252525",
	"f7f7f7d9d9d9bdbdbd969696636363252525",
	"f7f7f7d9d9d9bdbdbd969696737373525252252525",
	"fffffff0f0f0d9d9d9bdbdbd969696737373525252252525",
	"fffffff0f0f0d9d9d9bdbdbd969696737373525252252525000000"
].map(Q)), $([
	,
	,
	,
	"efedf5bcbddc756bb1",
	"f2f0f7cbc9e29e9ac86a51a3",
	"f2f0f7cbc9e29e9ac8756bb154278f",
	"f2f0f7dadaebbcbddc9e9ac8756bb154278f",
	"f2f0f7dadaebbcbddc9e9ac8807dba6a51a34a1486",
	"fcfbfdefedf5dadaebbcbddc9e9ac8807dba6a51a34a1486",
	"fcfbfdefedf5dadaebbcbddc9e9ac8807dba6a51a354278f3f007d"
].map(Q)), $([
	,
	,
	,
	"fee0d2fc9272de2d26",
	"fee5d9fcae91fb6a4acb181d",
	"fee5d9fcae91fb6a4ade2d26a50f15",
	"fee5d9fcbba1fc9272fb6a4ade2d26a50f15",
	"fee5d9fcbba1fc9272fb6a4aef3b2ccb181d99000d",
	"fff5f0fee0d2fcbba1fc9272fb6a4aef3b2ccb181d99000d",
	"fff5f0fee0d2fcbba1fc9272fb6a4aef3b2ccb181da50f1567000d"
].map(Q)), $([
	,
	,
	,
	"fee6cefdae6be6550d",
	"feeddefdbe85fd8d3cd94701",
	"feeddefdbe85fd8d3ce6550da63603",
	"feeddefdd0a2fdae6bfd8d3ce6550da63603",
	"feeddefdd0a2fdae6bfd8d3cf16913d948018c2d04",
	"fff5ebfee6cefdd0a2fdae6bfd8d3cf16913d948018c2d04",
	"fff5ebfee6cefdd0a2fdae6bfd8d3cf16913d94801a636037f2704"
].map(Q)), Kt(M(300, .5, 0), M(-240, .5, 1)), Kt(M(-100, .75, .35), M(80, 1.5, .8)), Kt(M(260, .75, .35), M(80, 1.5, .8)), M(), be();
function rl(e) {
	var t = e.length;
	return function(n) {
		return e[Math.max(0, Math.min(t - 1, Math.floor(n * t)))];
	};
}
rl(Q("44015444025645045745055946075a46085c460a5d460b5e470d60470e6147106347116447136548146748166848176948186a481a6c481b6d481c6e481d6f481f70482071482173482374482475482576482677482878482979472a7a472c7a472d7b472e7c472f7d46307e46327e46337f463480453581453781453882443983443a83443b84433d84433e85423f854240864241864142874144874045884046883f47883f48893e49893e4a893e4c8a3d4d8a3d4e8a3c4f8a3c508b3b518b3b528b3a538b3a548c39558c39568c38588c38598c375a8c375b8d365c8d365d8d355e8d355f8d34608d34618d33628d33638d32648e32658e31668e31678e31688e30698e306a8e2f6b8e2f6c8e2e6d8e2e6e8e2e6f8e2d708e2d718e2c718e2c728e2c738e2b748e2b758e2a768e2a778e2a788e29798e297a8e297b8e287c8e287d8e277e8e277f8e27808e26818e26828e26828e25838e25848e25858e24868e24878e23888e23898e238a8d228b8d228c8d228d8d218e8d218f8d21908d21918c20928c20928c20938c1f948c1f958b1f968b1f978b1f988b1f998a1f9a8a1e9b8a1e9c891e9d891f9e891f9f881fa0881fa1881fa1871fa28720a38620a48621a58521a68522a78522a88423a98324aa8325ab8225ac8226ad8127ad8128ae8029af7f2ab07f2cb17e2db27d2eb37c2fb47c31b57b32b67a34b67935b77937b87838b9773aba763bbb753dbc743fbc7340bd7242be7144bf7046c06f48c16e4ac16d4cc26c4ec36b50c46a52c56954c56856c66758c7655ac8645cc8635ec96260ca6063cb5f65cb5e67cc5c69cd5b6ccd5a6ece5870cf5773d05675d05477d1537ad1517cd2507fd34e81d34d84d44b86d54989d5488bd6468ed64590d74393d74195d84098d83e9bd93c9dd93ba0da39a2da37a5db36a8db34aadc32addc30b0dd2fb2dd2db5de2bb8de29bade28bddf26c0df25c2df23c5e021c8e020cae11fcde11dd0e11cd2e21bd5e21ad8e219dae319dde318dfe318e2e418e5e419e7e419eae51aece51befe51cf1e51df4e61ef6e620f8e621fbe723fde725")), rl(Q("00000401000501010601010802010902020b02020d03030f03031204041405041606051806051a07061c08071e0907200a08220b09240c09260d0a290e0b2b100b2d110c2f120d31130d34140e36150e38160f3b180f3d19103f1a10421c10441d11471e114920114b21114e22115024125325125527125829115a2a115c2c115f2d11612f116331116533106734106936106b38106c390f6e3b0f703d0f713f0f72400f74420f75440f764510774710784910784a10794c117a4e117b4f127b51127c52137c54137d56147d57157e59157e5a167e5c167f5d177f5f187f601880621980641a80651a80671b80681c816a1c816b1d816d1d816e1e81701f81721f817320817521817621817822817922827b23827c23827e24828025828125818326818426818627818827818928818b29818c29818e2a81902a81912b81932b80942c80962c80982d80992d809b2e7f9c2e7f9e2f7fa02f7fa1307ea3307ea5317ea6317da8327daa337dab337cad347cae347bb0357bb2357bb3367ab5367ab73779b83779ba3878bc3978bd3977bf3a77c03a76c23b75c43c75c53c74c73d73c83e73ca3e72cc3f71cd4071cf4070d0416fd2426fd3436ed5446dd6456cd8456cd9466bdb476adc4869de4968df4a68e04c67e24d66e34e65e44f64e55064e75263e85362e95462ea5661eb5760ec5860ed5a5fee5b5eef5d5ef05f5ef1605df2625df2645cf3655cf4675cf4695cf56b5cf66c5cf66e5cf7705cf7725cf8745cf8765cf9785df9795df97b5dfa7d5efa7f5efa815ffb835ffb8560fb8761fc8961fc8a62fc8c63fc8e64fc9065fd9266fd9467fd9668fd9869fd9a6afd9b6bfe9d6cfe9f6dfea16efea36ffea571fea772fea973feaa74feac76feae77feb078feb27afeb47bfeb67cfeb77efeb97ffebb81febd82febf84fec185fec287fec488fec68afec88cfeca8dfecc8ffecd90fecf92fed194fed395fed597fed799fed89afdda9cfddc9efddea0fde0a1fde2a3fde3a5fde5a7fde7a9fde9aafdebacfcecaefceeb0fcf0b2fcf2b4fcf4b6fcf6b8fcf7b9fcf9bbfcfbbdfcfdbf"));
var il = rl(Q("00000401000501010601010802010a02020c02020e03021004031204031405041706041907051b08051d09061f0a07220b07240c08260d08290e092b10092d110a30120a32140b34150b37160b39180c3c190c3e1b0c411c0c431e0c451f0c48210c4a230c4c240c4f260c51280b53290b552b0b572d0b592f0a5b310a5c320a5e340a5f3609613809623909633b09643d09653e0966400a67420a68440a68450a69470b6a490b6a4a0c6b4c0c6b4d0d6c4f0d6c510e6c520e6d540f6d550f6d57106e59106e5a116e5c126e5d126e5f136e61136e62146e64156e65156e67166e69166e6a176e6c186e6d186e6f196e71196e721a6e741a6e751b6e771c6d781c6d7a1d6d7c1d6d7d1e6d7f1e6c801f6c82206c84206b85216b87216b88226a8a226a8c23698d23698f24699025689225689326679526679727669827669a28659b29649d29649f2a63a02a63a22b62a32c61a52c60a62d60a82e5fa92e5eab2f5ead305dae305cb0315bb1325ab3325ab43359b63458b73557b93556ba3655bc3754bd3853bf3952c03a51c13a50c33b4fc43c4ec63d4dc73e4cc83f4bca404acb4149cc4248ce4347cf4446d04545d24644d34743d44842d54a41d74b3fd84c3ed94d3dda4e3cdb503bdd513ade5238df5337e05536e15635e25734e35933e45a31e55c30e65d2fe75e2ee8602de9612bea632aeb6429eb6628ec6726ed6925ee6a24ef6c23ef6e21f06f20f1711ff1731df2741cf3761bf37819f47918f57b17f57d15f67e14f68013f78212f78410f8850ff8870ef8890cf98b0bf98c0af98e09fa9008fa9207fa9407fb9606fb9706fb9906fb9b06fb9d07fc9f07fca108fca309fca50afca60cfca80dfcaa0ffcac11fcae12fcb014fcb216fcb418fbb61afbb81dfbba1ffbbc21fbbe23fac026fac228fac42afac62df9c72ff9c932f9cb35f8cd37f8cf3af7d13df7d340f6d543f6d746f5d949f5db4cf4dd4ff4df53f4e156f3e35af3e55df2e661f2e865f2ea69f1ec6df1ed71f1ef75f1f179f2f27df2f482f3f586f3f68af4f88ef5f992f6fa96f8fb9af9fc9dfafda1fcffa4"));
rl(Q("0d088710078813078916078a19068c1b068d1d068e20068f2206902406912605912805922a05932c05942e05952f059631059733059735049837049938049a3a049a3c049b3e049c3f049c41049d43039e44039e46039f48039f4903a04b03a14c02a14e02a25002a25102a35302a35502a45601a45801a45901a55b01a55c01a65e01a66001a66100a76300a76400a76600a76700a86900a86a00a86c00a86e00a86f00a87100a87201a87401a87501a87701a87801a87a02a87b02a87d03a87e03a88004a88104a78305a78405a78606a68707a68808a68a09a58b0aa58d0ba58e0ca48f0da4910ea3920fa39410a29511a19613a19814a099159f9a169f9c179e9d189d9e199da01a9ca11b9ba21d9aa31e9aa51f99a62098a72197a82296aa2395ab2494ac2694ad2793ae2892b02991b12a90b22b8fb32c8eb42e8db52f8cb6308bb7318ab83289ba3388bb3488bc3587bd3786be3885bf3984c03a83c13b82c23c81c33d80c43e7fc5407ec6417dc7427cc8437bc9447aca457acb4679cc4778cc4977cd4a76ce4b75cf4c74d04d73d14e72d24f71d35171d45270d5536fd5546ed6556dd7566cd8576bd9586ada5a6ada5b69db5c68dc5d67dd5e66de5f65de6164df6263e06363e16462e26561e26660e3685fe4695ee56a5de56b5de66c5ce76e5be76f5ae87059e97158e97257ea7457eb7556eb7655ec7754ed7953ed7a52ee7b51ef7c51ef7e50f07f4ff0804ef1814df1834cf2844bf3854bf3874af48849f48948f58b47f58c46f68d45f68f44f79044f79143f79342f89441f89540f9973ff9983ef99a3efa9b3dfa9c3cfa9e3bfb9f3afba139fba238fca338fca537fca636fca835fca934fdab33fdac33fdae32fdaf31fdb130fdb22ffdb42ffdb52efeb72dfeb82cfeba2cfebb2bfebd2afebe2afec029fdc229fdc328fdc527fdc627fdc827fdca26fdcb26fccd25fcce25fcd025fcd225fbd324fbd524fbd724fad824fada24f9dc24f9dd25f8df25f8e125f7e225f7e425f6e626f6e826f5e926f5eb27f4ed27f3ee27f3f027f2f227f1f426f1f525f0f724f0f921"));
// src/tokens.ts
var al = [
	{
		column: "size_at",
		name: "density: edges needed for TV ≤ 0.1",
		show: L
	},
	{
		column: "auc_log",
		name: "density: area over log size",
		show: (e) => z(e)
	},
	{
		column: "auc_linear",
		name: "density: area over size",
		show: (e) => z(e)
	},
	{
		column: "entropy",
		name: "entropy of the prediction, nats",
		show: (e) => z(e, 2)
	},
	{
		column: "surprisal",
		name: "surprisal of the next token, nats",
		show: (e) => z(e, 2)
	},
	{
		column: "frequency",
		name: "frequency",
		show: (e) => e.toPrecision(2)
	}
], ol = class {
	payload;
	host;
	options;
	replace;
	element;
	measure;
	importance;
	contrast = 1;
	at = null;
	theme = "auto";
	rows = /* @__PURE__ */ new Map();
	positions;
	words = [];
	text = P("div", {
		class: "text",
		role: "listbox",
		"aria-label": "The text, a token at a time"
	});
	strip = P("canvas", {
		class: "strip",
		role: "img",
		"aria-label": "The measure along the whole text"
	});
	facts = P("aside", { class: "panels" });
	notice = P("div", {
		class: "notice",
		role: "alert",
		hidden: !0
	});
	key = P("canvas", {
		width: 220,
		height: 12,
		"aria-hidden": "true"
	});
	keyText = P("span", { class: "small" });
	inner = null;
	outer;
	observer = new ResizeObserver(() => this.drawStrip());
	help = Yc();
	opening = !1;
	darkQuery = matchMedia("(prefers-color-scheme: dark)");
	onScheme = () => this.update();
	static async ask(e, t, n, r, i) {
		let a = e.views[0];
		try {
			let e = Fc(await t.ask("tokens", {
				id: a.id,
				importance: a.importances[0]
			}));
			n.address && history.replaceState(null, "", "#"), r(e);
		} catch (e) {
			i(e.message);
		}
	}
	constructor(e, t, n, r) {
		this.payload = e, this.host = t, this.options = n, this.replace = r;
		let { columns: i } = e;
		this.positions = [...new Set(i.position)].sort((e, t) => e - t), i.position.forEach((e, t) => this.rows.set(`${i.importance[t]}/${e}`, t));
		let a = al.filter(({ column: e }) => i[e]?.some((e) => e !== null));
		this.measure = a[0] ?? al[0];
		let o = [...new Set(i.importance)];
		this.importance = o[0], this.restore(a, o);
		let s = P("select", {
			"aria-label": "Colour by",
			id: "measure",
			onchange: () => {
				this.measure = a.find((e) => e.column === s.value), this.update();
			}
		}, ...a.map((e) => P("option", {
			value: e.column,
			selected: e === this.measure
		}, e.name))), c = P("select", {
			"aria-label": "Score",
			id: "importance",
			onchange: () => {
				this.importance = c.value, this.update();
			}
		}, ...o.map((e) => P("option", {
			value: e,
			selected: e === this.importance
		}, e))), l = P("input", {
			type: "range",
			min: "0",
			max: "100",
			step: "1",
			value: String(50 + 25 * Math.log2(this.contrast)),
			id: "contrast",
			"aria-label": "Contrast",
			oninput: () => {
				this.contrast = 2 ** ((Number(l.value) - 50) / 25), l.setAttribute("aria-valuetext", this.contrast.toFixed(2)), this.update();
			}
		});
		this.outer = P("div", {}, P("header", { class: "bar" }, P("div", { class: "title" }, P("strong", {}, "densitometer"), P("span", { class: "muted" }, `${R(this.positions.length)} tokens`)), P("div", { class: "prompt" }, e.label), P("div", { class: "buttons" }, P("label", { class: "small" }, "colour by ", s), o.length > 1 ? P("label", { class: "small" }, "score ", c) : null, P("label", { class: "small" }, "contrast ", l), P("button", {
			type: "button",
			onclick: () => Fr("densitometer-tokens.json", new Blob([JSON.stringify(e.raw)], { type: "application/json" }))
		}, "Data, JSON"), P("button", {
			type: "button",
			class: "theme",
			onclick: () => this.nextTheme()
		}, "Theme"))), this.notice, P("div", { class: "strip-box" }, this.strip), P("main", {}, P("div", { class: "left" }, this.text, P("p", { class: "legend small" }, this.key, this.keyText, P("span", { class: "hatched" }, " none "), "no value: never within 0.1, or nothing to predict from")), this.facts)), this.element = P("div", { class: "explorer tokens" }, this.outer, this.help), this.buildText(i), this.strip.addEventListener("click", (e) => {
			let t = this.strip.getBoundingClientRect(), n = Math.min(this.words.length - 1, Math.max(0, Math.floor((e.clientX - t.left) / t.width * this.words.length)));
			this.focus(n);
		}), this.observer.observe(this.strip), this.darkQuery.addEventListener("change", this.onScheme), this.update(), this.at !== null && requestAnimationFrame(() => this.choose(this.positions.indexOf(this.at)));
	}
	destroy() {
		this.observer.disconnect(), this.darkQuery.removeEventListener("change", this.onScheme), this.inner?.destroy();
	}
	restore(e, t) {
		if (!this.options.address) return;
		let n = new URLSearchParams(location.hash.slice(1));
		this.measure = e.find((e) => e.column === n.get("colour")) ?? this.measure, this.importance = t.find((e) => e === n.get("by")) ?? this.importance;
		let r = Number(n.get("contrast"));
		r > .1 && r < 10 && (this.contrast = r);
		let i = Number(n.get("at") ?? NaN);
		this.positions.includes(i) && (this.at = i);
		let a = n.get("theme");
		(a === "light" || a === "dark") && (this.theme = a);
	}
	save() {
		if (!this.options.address || this.inner) return;
		let e = new URLSearchParams({
			colour: this.measure.column,
			by: this.importance
		});
		this.contrast !== 1 && e.set("contrast", this.contrast.toFixed(2)), this.at !== null && e.set("at", String(this.at)), this.theme !== "auto" && e.set("theme", this.theme);
		try {
			history.replaceState(null, "", `#${e}`);
		} catch {}
	}
	get dark() {
		return this.theme === "dark" || this.theme === "auto" && this.darkQuery.matches;
	}
	nextTheme() {
		let e = [
			"auto",
			"light",
			"dark"
		];
		this.theme = e[(e.indexOf(this.theme) + 1) % 3], this.update();
	}
	buildText(e) {
		let t = [];
		this.words = this.positions.map((n, r) => {
			let i = e.token[e.position.indexOf(n)], a = P("span", {
				class: "word",
				role: "option",
				tabIndex: r === 0 ? 0 : -1,
				"aria-selected": "false"
			}, I(i));
			return a.addEventListener("focus", () => this.choose(r)), a.addEventListener("pointerenter", () => this.showFacts(r)), a.addEventListener("click", () => void this.open(r)), t.push(a), i.includes("\n") && t.push(P("br")), a;
		}), this.text.replaceChildren(...t), this.text.addEventListener("pointerleave", () => this.showFacts(this.at === null ? -1 : this.positions.indexOf(this.at))), this.text.addEventListener("keydown", (e) => {
			let t = Math.max(0, this.words.indexOf(e.target)), n = {
				ArrowRight: 1,
				ArrowDown: 10,
				ArrowLeft: -1,
				ArrowUp: -10,
				Home: -1e9,
				End: 1e9
			};
			e.key in n ? (e.preventDefault(), this.focus(Math.max(0, Math.min(this.words.length - 1, t + n[e.key])))) : (e.key === "Enter" || e.key === " ") && (e.preventDefault(), this.open(t));
		});
	}
	value(e) {
		let t = this.rows.get(`${this.importance}/${this.positions[e]}`), n = t === void 0 ? null : this.payload.columns[this.measure.column]?.[t];
		return typeof n == "number" ? n : null;
	}
	scale() {
		let e = this.words.map((e, t) => this.value(t)).filter((e) => e !== null), t = Math.min(...e), n = Math.max(...e), r = Mn([t, n > t ? n : t + 1], [0, 1]), i = this.dark ? (e) => il(.12 + .8 * e) : (e) => nl(.9 * e);
		return {
			colour: (e) => i(r(e) ** (1 / this.contrast)),
			low: t,
			high: n
		};
	}
	update() {
		let e = this.dark ? Lr : Ir;
		this.element.dataset.theme = this.dark ? "dark" : "light", this.outer.querySelector(".theme").textContent = `Theme: ${this.theme}`;
		let { colour: t, low: n, high: r } = this.scale();
		this.words.forEach((e, n) => {
			let r = this.value(n);
			e.classList.toggle("hatched", r === null);
			let i = r === null ? "" : t(r);
			e.style.backgroundColor = i, e.style.color = r === null ? "" : Hr(i), e.setAttribute("aria-label", `${e.textContent}: ${r === null ? "no value" : this.measure.show(r)}`);
		});
		let i = this.key.getContext("2d");
		for (let e = 0; e < 220; e++) i.fillStyle = t(n + (r - n) * e / 219), i.fillRect(e, 0, 1, 12);
		this.keyText.textContent = Number.isFinite(n) ? `${this.measure.show(n)} to ${this.measure.show(r)}` : "no values", this.drawStrip(e.ground), this.showFacts(this.at === null ? -1 : this.positions.indexOf(this.at)), this.save();
	}
	drawStrip(e = (this.dark ? Lr : Ir).ground) {
		let t = this.strip.clientWidth || 800, n = Math.min(devicePixelRatio || 1, 2);
		this.strip.width = t * n, this.strip.height = 44 * n;
		let r = this.strip.getContext("2d");
		r.scale(n, n), r.fillStyle = e, r.fillRect(0, 0, t, 44);
		let { colour: i, low: a, high: o } = this.scale(), s = this.words.length;
		for (let e = 0; e < s; e++) {
			let n = this.value(e);
			if (n === null) continue;
			let c = 4 + 36 * ((n - a) / (o - a || 1));
			r.fillStyle = i(n), r.fillRect(e * t / s, 44 - c, Math.max(1, t / s - +(t / s > 4)), c);
		}
		this.at !== null && (r.fillStyle = (this.dark ? Lr : Ir).accent, r.fillRect(this.positions.indexOf(this.at) * t / s, 0, Math.max(2, t / s), 3));
	}
	focus(e) {
		this.words[e].focus(), this.words[e].scrollIntoView({ block: "nearest" });
	}
	choose(e) {
		if (e < 0) return;
		let t = this.at === null ? -1 : this.positions.indexOf(this.at);
		t >= 0 ? (this.words[t].tabIndex = -1, this.words[t].setAttribute("aria-selected", "false")) : this.words[0].tabIndex = -1, this.at = this.positions[e], this.words[e].tabIndex = 0, this.words[e].setAttribute("aria-selected", "true"), this.showFacts(e), this.drawStrip(), this.save();
	}
	showFacts(e) {
		if (e < 0) {
			this.facts.replaceChildren(P("section", {}, P("h2", {}, "A token"), P("p", { class: "small" }, "Point at a token, or move with the arrow keys. The colour of a token tells how much of the model's computation the prediction after it took; Enter or a click opens its trace.")));
			return;
		}
		let t = this.positions[e], n = this.rows.get(`${this.importance}/${t}`), { columns: r } = this.payload, i = n === void 0 ? [] : al.filter(({ column: e }) => r[e]).map((e) => {
			let t = r[e.column][n];
			return [e.name, typeof t == "number" ? e.show(t) : "none"];
		}), a = this.canOpen(t);
		this.facts.replaceChildren(P("section", {}, P("h2", {}, `Token ${t}: `, P("code", {}, I(r.token[r.position.indexOf(t)]))), P("dl", { class: "facts wide" }, ...i.flatMap(([e, t]) => [P("dt", {}, e), P("dd", {}, t)])), a ? P("button", {
			type: "button",
			onclick: () => void this.open(e)
		}, "Open its trace") : P("p", { class: "small" }, "Its trace is not in this file; `densitometer explore` opens any.")));
	}
	canOpen(e) {
		return this.payload.views.has(e) || this.host.kind !== "file" && this.payload.raw.id !== void 0 && e > 0;
	}
	async open(e) {
		let t = this.positions[e];
		if (this.choose(e), !this.canOpen(t) || this.opening) return;
		let n, r = this.payload.views.get(t);
		if (r) n = {
			kind: "traces",
			views: [r],
			raw: {
				schema: this.payload.raw.schema,
				kind: "traces",
				views: [this.payload.raw.views[String(t)]]
			}
		};
		else {
			this.opening = !0, this.element.classList.add("waiting");
			try {
				n = Fc(await this.host.ask("trace_at", {
					id: this.payload.raw.id,
					position: t,
					importance: this.importance
				}));
			} catch (e) {
				this.notice.hidden = !1, this.notice.textContent = e.message;
				return;
			} finally {
				this.opening = !1, this.element.classList.remove("waiting");
			}
		}
		n.kind === "traces" && (this.options.address && history.replaceState(null, "", "#"), this.inner?.destroy(), this.inner = new Kc(n, this.host, {
			address: this.options.address,
			back: () => {
				this.inner?.destroy(), this.inner = null, this.element.replaceChildren(this.outer, this.help), this.update(), this.focus(e);
			}
		}, (e) => this.replace(e)), this.element.replaceChildren(this.inner.element), this.inner.element.querySelector("button")?.focus());
	}
};
// src/main.ts
function sl(e, t, n) {
	let r = e.shadowRoot ?? e.attachShadow({ mode: "open" }), i = new CSSStyleSheet();
	i.replaceSync(tl), r.adoptedStyleSheets = [i];
	let a = null, o = (e) => {
		a?.destroy(), a = null, e instanceof Error ? r.replaceChildren(P("div", {
			class: "failure",
			role: "alert"
		}, P("h1", {}, "densitometer"), P("p", {}, e.message))) : (a = e.kind === "tokens" ? new ol(e, t, { address: n }, o) : new Kc(e, t, {
			address: n,
			along: () => s(e)
		}, o), r.replaceChildren(a.element));
	}, s = async (e) => {
		let r = a;
		await ol.ask(e, t, { address: n }, o, (e) => r.fail(e));
	};
	return o;
}
async function cl(e) {
	let t = document.getElementById("densitometer-payload"), n = sl(e, t ? Xc : $c, !0);
	try {
		if (t) return n(await Pc(t.textContent ?? ""));
		let e = await fetch("payload");
		if (!e.ok) throw Error((await e.json()).error ?? `The server answered with ${e.status}.`);
		n(await Nc(new Uint8Array(await e.arrayBuffer())));
	} catch (e) {
		n(e instanceof TypeError ? /* @__PURE__ */ Error("The server does not answer. Start it again with `densitometer explore`.") : e);
	}
}
async function ll({ model: e, el: t }) {
	let n = P("div", { class: "densitometer" });
	n.style.height = "760px", t.append(n);
	let r = sl(n, el(e), !1);
	try {
		let t = e.get("payload");
		r(await Nc(new Uint8Array(t.buffer, t.byteOffset, t.byteLength)));
	} catch (e) {
		r(e);
	}
	return () => n.remove();
}
var ul = { render: ll }, dl = document.getElementById("densitometer");
dl && (document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", () => void cl(dl)) : cl(dl));
export { ul as default };
