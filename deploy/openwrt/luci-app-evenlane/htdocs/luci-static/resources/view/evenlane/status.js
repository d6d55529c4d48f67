// SPDX-License-Identifier: EUPL-1.2
// What the probe did and found, in the sentences that it wrote itself into status.json.
// Every text is handed to E() in a list: LuCI takes a bare string for HTML, and names in here come from strangers.
'use strict';
'require view';
'require fs';
'require poll';
'require dom';

var STATUS = '/var/run/evenlane/status.json';
var MOST_SENTENCES = 60;

// Okabe-Ito, as everywhere in evenlane; never colour alone.
var APP = '#0072B2', NEUTRAL = '#009E73';

function text(tag, content, attributes) {
	return E(tag, attributes || {}, [ String(content) ]);
}

function language() {
	return String(document.documentElement.lang || 'en').slice(0, 2).toLowerCase();
}

function read(raw) {
	try {
		var found = JSON.parse(raw);
		return (found && typeof found == 'object' && !Array.isArray(found)) ? found : null;
	}
	catch (error) {
		return null;
	}
}

function listed(value) {
	return Array.isArray(value) ? value.filter(function(one) { return typeof one == 'string' && one != ''; }).slice(0, MOST_SENTENCES) : [];
}

function sentences(status) {
	var all = status.sentences || {};
	return listed(all[status.language] || all[language()] || all.en);
}

function number(value) {
	return (typeof value == 'number' && isFinite(value)) ? value : null;
}

function megabytes(part, whole) {
	var used = number(part), most = number(whole);
	if (used == null)
		return null;
	return most == null ? _('%s MB').format(used.toFixed(0)) : _('%s of %s MB').format(used.toFixed(0), most.toFixed(0));
}

function time(ms) {
	var at = number(ms);
	return at == null || at <= 0 ? null : new Date(at).toLocaleString(document.documentElement.lang || undefined);
}

function facts(status) {
	var budget = status.budget || {}, spool = status.spool || {}, collector = status.collector || {};
	return [
		[ _('Last look'), time(status.at_ms) ],
		[ _('Next look'), time(status.next_ms) ],
		[ _('Used today'), megabytes(budget.day_mb, budget.daily_mb) ],
		[ _('Used this month'), megabytes(budget.month_mb, budget.monthly_mb) ],
		[ _('Waiting for the collector'), number(spool.sessions) ],
		[ _('Last heard from the collector'), time(collector.contact_ms) ]
	].filter(function(row) { return row[1] != null; });
}

// Two lanes an app: itself and its neutral twin, on one scale. Even lanes mean neutral.
function lanes(status) {
	var apps = (status.last && Array.isArray(status.last.apps)) ? status.last.apps.slice(0, 24) : [];
	apps = apps.filter(function(one) { return one && number(one.app_mbps) != null && number(one.neutral_mbps) != null; });
	var most = Math.max.apply(null, apps.map(function(one) { return Math.max(one.app_mbps, one.neutral_mbps); }).concat([ 0.001 ]));

	function lane(name, mbps, colour) {
		var width = Math.max(0, Math.min(100, 100 * mbps / most));
		return E('div', { 'style': 'display:flex;align-items:center;gap:.5em' }, [
			text('span', name, { 'style': 'flex:0 0 9em;overflow:hidden;text-overflow:ellipsis' }),
			E('span', { 'style': 'flex:1 1 auto', 'aria-hidden': 'true' }, [
				E('span', { 'style': 'display:block;height:.9em;background:%s;width:%f%%'.format(colour, width) }, [])
			]),
			text('span', _('%s Mbit/s').format(mbps.toFixed(1)), { 'style': 'flex:0 0 7em;font-variant-numeric:tabular-nums' })
		]);
	}

	return apps.map(function(one) {
		return E('div', { 'style': 'margin:.75em 0' }, [
			lane(String(one.app), one.app_mbps, APP),
			lane(_('neutral twin'), one.neutral_mbps, NEUTRAL)
		]);
	});
}

function draw(raw) {
	var status = read(raw);

	if (status == null)
		return [
			text('p', _('The probe has not written anything yet. It does so after its first look, within a few minutes of its start.')),
			text('p', _('If it stays like this: log in to the router and run evenlane probe doctor, which says what to do.'))
		];

	var problems = listed(status.problems), bars = lanes(status), told = sentences(status);
	var drawn = told.map(function(one) { return text('p', one); });

	if (problems.length)
		drawn.push(E('div', { 'class': 'alert-message warning' }, [
			text('h4', _('Settings that were not understood')),
			E('ul', {}, problems.map(function(one) { return text('li', one); }))
		]));

	if (bars.length)
		drawn.push(E('div', { 'class': 'cbi-section' }, [ text('h3', _('Last comparison')) ].concat(bars)));

	drawn.push(E('table', { 'class': 'table' }, facts(status).map(function(row) {
		return E('tr', { 'class': 'tr' }, [ text('td', row[0], { 'class': 'td left', 'width': '33%' }), text('td', row[1], { 'class': 'td left' }) ]);
	})));

	return drawn;
}

return view.extend({
	load: function() {
		return L.resolveDefault(fs.read(STATUS), '');
	},

	render: function(raw) {
		var page = E('div', {}, draw(raw));

		poll.add(function() {
			return L.resolveDefault(fs.read(STATUS), '').then(function(now) {
				dom.content(page, draw(now));
			});
		}, 30);

		return E('div', { 'class': 'cbi-map' }, [ text('h2', _('What was measured')), page ]);
	},

	handleSaveApply: null,
	handleSave: null,
	handleReset: null
});
