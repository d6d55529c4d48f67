// SPDX-License-Identifier: EUPL-1.2
// The settings of /etc/config/evenlane. What is checked here is what the init script checks too: a mistake is best
// told where it is made.
'use strict';
'require view';
'require form';
'require tools.widgets as widgets';

function matches(pattern, sentence) {
	return function(section_id, value) {
		return !value || pattern.test(value) || sentence;
	};
}

function oneLine(section_id, value) {
	return !value || (value.length <= 64 && !/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/.test(value)) ||
		_('One line of at most 64 characters');
}

return view.extend({
	render: function() {
		var m, s, o;

		m = new form.Map('evenlane', _('Net neutrality'),
			_('The internet is like a street: everyone may use it, and everyone follows the same rules. This probe measures whether that holds on your line.'));

		s = m.section(form.NamedSection, 'main', 'probe');
		s.addremove = false;
		s.anonymous = true;
		s.tab('general', _('Probe'));
		s.tab('line', _('Your line'));
		s.tab('consideration', _('Consideration'));
		s.tab('more', _('More'));

		o = s.taboption('general', form.Flag, 'enabled', _('Measure'),
			_('Off: nothing is measured and nobody is contacted.'));
		o.default = '1';
		o.rmempty = false;

		o = s.taboption('general', form.Value, 'collector', _('Collector'),
			_('Where the measurements go. Join it once at the command line: evenlane probe enrol --collector ADDRESS'));
		o.placeholder = 'https://collector.example.org';
		o.validate = matches(/^https?:\/\/[^\s\/?#]+(\/[^\s?#]*)?(#sha256=[0-9a-fA-F]{64})?$/,
			_('An address like https://collector.example.org'));

		o = s.taboption('general', form.Value, 'collector_key', _('Key of the collector'),
			_('If you have it from elsewhere: its 43 characters. Empty: the key it shows when you join.'));
		o.validate = matches(/^[A-Za-z0-9_-]{43}$/, _('A key has 43 letters, digits, hyphens or underscores'));

		o = s.taboption('general', form.ListValue, 'language', _('Language of results'));
		o.value('', _('As of this page'));
		o.value('nl', 'Nederlands');
		o.value('fr', 'Français');
		o.value('de', 'Deutsch');
		o.value('en', 'English');

		o = s.taboption('line', form.Value, 'brand', _('Provider'), _('The name on your bill.'));
		o.validate = oneLine;

		o = s.taboption('line', form.Value, 'tariff', _('Tariff'), _('As your contract calls it.'));
		o.validate = oneLine;

		o = s.taboption('line', form.Value, 'contract_down_mbps', _('Download speed of the contract'), _('In Mbit/s.'));
		o.datatype = 'and(ufloat,min(0.001),max(1000000))';

		o = s.taboption('line', form.Value, 'contract_up_mbps', _('Upload speed of the contract'), _('In Mbit/s.'));
		o.datatype = 'and(ufloat,min(0.001),max(1000000))';

		o = s.taboption('line', form.ListValue, 'declared_position', _('Where this device stands'));
		o.value('', _('Let the probe find out'));
		o.value('router', _('The line ends at this device'));
		o.value('behind_router', _('Behind another router'));
		o.value('hotspot', _('In a public hotspot'));

		o = s.taboption('line', form.Flag, 'hotspot', _('Public hotspot'),
			_('Measures little, never logs in by itself, and counts apart from homes.'));

		o = s.taboption('line', form.ListValue, 'opt_in_filters', _('Filter that you asked for'),
			_('Parental control, a data saver: it would look as if the provider slowed something.'));
		o.value('', _('I do not know'));
		o.value('0', _('No'));
		o.value('1', _('Yes'));

		o = s.taboption('consideration', form.Value, 'daily_mb', _('At most a day'),
			_('In megabytes. The collector may ask for less, never for more.'));
		o.datatype = 'range(0,9999999)';
		o.placeholder = '200';

		o = s.taboption('consideration', form.Value, 'monthly_mb', _('At most a month'), _('In megabytes.'));
		o.datatype = 'range(0,9999999)';
		o.placeholder = '5000';

		o = s.taboption('consideration', form.DynamicList, 'quiet_hours', _('Quiet hours'),
			_('Local times without measurements, like 22:30-07:00.'));
		o.validate = matches(/^([01]?\d|2[0-3]):[0-5]\d-(([01]?\d|2[0-3]):[0-5]\d|24:00)$/, _('Two times of the day, like 22:30-07:00'));

		o = s.taboption('consideration', form.ListValue, 'metered', _('Line is paid by the byte'),
			_('Then nothing is measured.'));
		o.value('', _('Let the probe find out'));
		o.value('yes', _('Yes'));
		o.value('no', _('No'));

		o = s.taboption('more', widgets.NetworkSelect, 'interface', _('Network of the line'),
			_('Its counters tell when the household needs the line. Empty: the network with the default route.'));
		o.nocreate = true;

		o = s.taboption('more', form.Value, 'bind', _('Local address'), _('To measure from, where there are several.'));
		o.datatype = 'ipaddr';

		o = s.taboption('more', form.Value, 'textfile', _('File for Prometheus'),
			_('Full path of a file that a node exporter reads.'));
		o.validate = matches(/^\/[A-Za-z0-9._\/@%+=:-]+[^\/]$/, _('A full path, beginning with a slash'));

		o = s.taboption('more', form.Value, 'login_hook', _('Your login program'),
			_('Full path of a program of yours that a captive portal starts. Without one, nobody ever logs in.'));
		o.validate = matches(/^\/[A-Za-z0-9._\/@%+=:-]+[^\/]$/, _('A full path, beginning with a slash'));

		return m.render();
	}
});
